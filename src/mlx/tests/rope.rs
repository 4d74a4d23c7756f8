//! YaRN: the worker's wavelengths are the native engine's, and transformers' own wherever that covers a shape.

use super::*;
use crate::config::Rope;
use serde_json::{Value, json};
use std::{io::Write, process::Stdio};

/// Shapes on stdin; on stdout, for each, the inverse frequencies of the worker, and of transformers (its own code
/// over NumPy in f64; null where its ramp would have no width or a negative one, which it does not bound).
const BOTH: &str = r#"
import json, math, sys, types
sys.path.insert(0, sys.argv[1])
import numpy as np
import model
from transformers import modeling_rope_utils as judge

class Array(np.ndarray):
    def to(self, **_):
        return self

arange = lambda *n, **_: np.arange(*n, dtype=np.float64).view(Array)
judge.torch = types.SimpleNamespace(arange=arange, clamp=np.clip, float=None, float32=None)

def judged(config):
    rope, dim = config["rope_scaling"] | {"rope_theta": config["rope_theta"]}, config["head_dim"]
    def at(beta):
        turns = rope["original_max_position_embeddings"] / (2 * math.pi * beta)
        return dim * math.log(turns) / math.log(rope["rope_theta"]) / 2
    low, high = at(rope["beta_fast"]), at(rope["beta_slow"])
    if rope["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    if min(high, dim - 1) - max(low, 0) < 2e-3:
        return None
    shape = types.SimpleNamespace(rope_parameters=rope, head_dim=dim, hidden_size=dim, num_attention_heads=1,
        standardize_rope_params=lambda: None)
    return judge._compute_yarn_parameters(shape)[0].tolist()

json.dump([[(1 / model.wavelengths(c)).tolist(), judged(c)] for c in json.load(sys.stdin)], sys.stdout)
"#;

/// Released, and odd: every combination that the native engine reads.
fn shapes() -> Vec<(usize, Rope)> {
    let mut shapes = Vec::new();
    for theta in [1.5, 2.0, 10_000.0, 150_000.0, 1e12] {
        for factor in [1.0, 1.25, 32.0, 65536.0] {
            for original_context in [1, 7, 4096, 1 << 24] {
                for (beta_fast, beta_slow) in [(32.0, 1.0), (1e6, 1e-3), (1e6, 9e5), (1.0001, 1.0)]
                {
                    for rounded in [false, true] {
                        let rope = Rope {
                            theta,
                            factor,
                            original_context,
                            beta_fast,
                            beta_slow,
                            rounded,
                        };
                        shapes.extend([2, 4, 64, 256].map(|dim| (dim, rope.clone())));
                    }
                }
            }
        }
    }
    shapes
}

#[test]
fn wavelengths_are_the_native_engines_and_transformers() -> Result<()> {
    let shapes = shapes();
    let config = |(dim, rope): &(usize, Rope)| {
        json!({
            "head_dim": dim,
            "rope_theta": rope.theta,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": rope.factor,
                "original_max_position_embeddings": rope.original_context,
                "beta_fast": rope.beta_fast,
                "beta_slow": rope.beta_slow,
                "truncate": rope.rounded,
            },
        })
    };
    let configs: Vec<Value> = shapes.iter().map(config).collect();
    let worker = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/mlx_worker");
    let mut child = Command::new(python())
        .args(["-c", BOTH])
        .arg(worker)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("a pipe")?;
    stdin.write_all(&serde_json::to_vec(&configs)?)?;
    drop(stdin);
    let output = child.wait_with_output()?;
    assert!(output.status.success());
    let found: Vec<(Vec<f64>, Option<Vec<f64>>)> = serde_json::from_slice(&output.stdout)?;
    assert_eq!(found.len(), shapes.len());
    let mut judged = 0;
    for ((dim, rope), (worker, judge)) in shapes.iter().zip(&found) {
        let ours = rope.inv_freq(*dim);
        judged += usize::from(judge.is_some());
        for theirs in [Some(worker), judge.as_ref()].into_iter().flatten() {
            assert_eq!(ours.len(), theirs.len());
            for (&ours, &theirs) in ours.iter().zip(theirs) {
                let ours = f64::from(ours);
                let near = (ours - theirs).abs() <= 1e-6 * ours.abs();
                assert!(near, "{ours} {theirs}: {dim} {rope:?}");
            }
        }
    }
    // Odd as they are, the judge has an opinion on many.
    assert!(judged > shapes.len() / 3, "{judged} of {}", shapes.len());
    Ok(())
}
