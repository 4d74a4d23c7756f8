//! Seeded defects: a copy of a model's file with one thing wrong. `compare` names the first layer and stage
//! that differ and fails; a pair without a defect passes.

use crate::{Compared, compare, demo};
use gossamer::gguf::Gguf;
use std::path::{Path, PathBuf};

/// A copy of the demo model, changed.
struct Mutant {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Mutant {
    fn new(change: impl FnOnce(&mut Vec<u8>, &Gguf)) -> Mutant {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("mutant.gguf");
        let gguf = Gguf::open(&demo()).expect("the demo model");
        let mut bytes = std::fs::read(demo()).expect("the demo model");
        change(&mut bytes, &gguf);
        std::fs::write(&path, bytes).expect("a copy");
        Mutant {
            _folder: folder,
            path,
        }
    }

    /// Another value of a u32 in the metadata.
    fn with_key(key: &str, from: u32, to: u32) -> Mutant {
        Mutant::new(|bytes, _| {
            let found = bytes.windows(key.len()).position(|w| w == key.as_bytes());
            let at = found.expect("the key") + key.len();
            let value = |v: u32| [4u32.to_le_bytes(), v.to_le_bytes()].concat();
            assert_eq!(bytes[at..at + 8], value(from), "{key}");
            bytes[at..at + 8].copy_from_slice(&value(to));
        })
    }

    /// Other bytes of a tensor.
    fn with_tensor(name: &str, change: impl FnOnce(&mut [u8])) -> Mutant {
        Mutant::new(|bytes, gguf| {
            let tensor = gguf.tensor(name).expect("the tensor");
            change(&mut bytes[tensor.offset..tensor.offset + tensor.bytes]);
        })
    }
}

const QUICK: [&str; 4] = ["--no-speed", "--trace", "--max-tokens", "4"];

fn pair(backend: &str, a: &Path, b: &Path, more: &[&str]) -> Compared {
    let side = |path: &Path| format!("{backend}={}", path.display());
    let (a, b) = (side(a), side(b));
    compare(&[&[&*a, &*b][..], &QUICK, more].concat())
}

/// The exit code is 1, and the first difference is where the defect is.
fn found_at(compared: &Compared, layer: u64, stage: &str, position: Option<u64>) {
    let told = compared.told();
    assert_eq!(compared.code, Some(1), "{told}{}", compared.text());
    let beyond = &compared.found["trace"]["first_beyond"];
    assert_eq!(beyond["layer"], layer, "{beyond}");
    assert_eq!(beyond["stage"], stage, "{beyond}");
    if let Some(position) = position {
        assert!(
            beyond["worst_position"].as_u64() >= Some(position),
            "{beyond}"
        );
    }
    let place = format!("layer {layer}, {stage}");
    assert!(
        told.contains(&place) && compared.text().contains(&place),
        "{told}"
    );
    // Everything before it is equal, and the verdict does not choose between two different models.
    let stages = compared.found["trace"]["stages"]
        .as_array()
        .expect("stages");
    let before = stages.iter().take_while(|s| *s != beyond);
    before.for_each(|s| assert_eq!(s["relative_l2"], 0.0, "{s}"));
    assert!(compared.found["verdict"]["winner"].is_null());
}

#[test]
fn a_pair_without_a_defect_passes() {
    let same = Mutant::new(|_, _| ());
    for backend in ["cpu", "reference"] {
        let compared = pair(backend, &demo(), &same.path, &["--min-agreement", "1"]);
        assert_eq!(compared.code, Some(0), "{}", compared.told());
        assert!(compared.found["trace"]["first_beyond"].is_null());
        assert_eq!(compared.found["fidelity"]["agreement"], 1.0);
        assert_eq!(compared.found["fidelity"]["max_kl"], 0.0);
    }
    // Nor does the difference between two back ends count as one.
    let compared = compare(&[&["cpu", "reference"][..], &QUICK].concat());
    assert_eq!(compared.code, Some(0), "{}", compared.told());
    assert!(compared.found["fidelity"]["max_kl"].as_f64() > Some(0.0));
}

#[test]
fn a_window_off_by_one_is_found() {
    for wrong in [127, 129] {
        let mutant = Mutant::with_key("gpt-oss.attention.sliding_window", 128, wrong);
        for backend in ["cpu", "reference"] {
            let compared = pair(backend, &demo(), &mutant.path, &[]);
            found_at(&compared, 0, "attention_reduce", Some(127));
        }
    }
}

#[test]
fn missing_sinks_are_found() {
    let mutant = Mutant::with_tensor("blk.2.attn_sinks.weight", |sinks| {
        sinks
            .chunks_exact_mut(4)
            .for_each(|s| s.copy_from_slice(&(-1e4f32).to_le_bytes()));
    });
    found_at(
        &pair("cpu", &demo(), &mutant.path, &[]),
        2,
        "attention_reduce",
        None,
    );
}

#[test]
fn rounded_yarn_is_found() {
    let compared = compare(&[&["cpu", "cpu,rope-compat"][..], &QUICK].concat());
    found_at(&compared, 0, "norm_qkv_rope_append", None);
}

#[test]
fn three_experts_in_place_of_four_are_found() {
    let mutant = Mutant::with_key("gpt-oss.expert_used_count", 4, 3);
    found_at(
        &pair("cpu", &demo(), &mutant.path, &[]),
        0,
        "norm_router_topk",
        None,
    );
}

#[test]
fn a_wrong_weight_is_found_where_it_is() {
    let mutant = Mutant::with_tensor("blk.4.ffn_down_exps.weight", |blocks| {
        // The exponent of every block of MXFP4, one higher.
        blocks.chunks_exact_mut(17).for_each(|block| block[0] += 1);
    });
    let compared = pair("cpu", &demo(), &mutant.path, &[]);
    found_at(&compared, 4, "expert_down_residual", None);
}

/// Without a trace, agreement alone decides.
#[test]
fn too_little_agreement_fails() {
    let mutant = Mutant::with_tensor("output_norm.weight", |weights| {
        weights.rotate_left(64);
    });
    let b = format!("cpu={}", mutant.path.display());
    let compared = compare(&["cpu", &b, "--no-speed", "--max-tokens", "0"]);
    assert_eq!(compared.code, Some(1), "{}", compared.text());
    assert!(
        compared.told().contains("--min-agreement 0.95"),
        "{}",
        compared.told()
    );
    let agreement = compared.found["fidelity"]["agreement"].as_f64();
    assert!(agreement < Some(0.95), "{agreement:?}");
    let compared = compare(&[
        "cpu",
        &b,
        "--no-speed",
        "--max-tokens",
        "0",
        "--min-agreement",
        "0",
    ]);
    assert_eq!(compared.code, Some(0), "{}", compared.told());
}
