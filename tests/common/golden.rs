//! The tiny model of seed 1 with the logits that other engines computed for it, and the checks that
//! the golden tests make; tests/mutations.rs shows that the same checks fail on a wrong model.

use super::{max, models::Tiny, read_npy, root, row_errors, score_with};
use gossamer::weights::Model;
use sha2::{Digest, Sha256};
use std::{fmt::Write, path::Path, sync::Arc};

/// Most that the reference may differ from mlx-lm in f32, relative L2 of any position's logits.
pub const REFERENCE_ERROR: f64 = 1e-4;

/// What tests/golden/forward holds.
pub struct Golden {
    pub tiny: Tiny,
    /// mlx-lm in f32 with the released YaRN, at `positions`.
    pub mlx: Vec<Vec<f32>>,
    pub positions: Vec<usize>,
    /// llama.cpp on the GGUF file, every position; it rounds YaRN's range.
    pub llama: Vec<Vec<f32>>,
}

impl Golden {
    /// Makes the model anew and checks that it is the one that the judges saw.
    pub fn open() -> Golden {
        let tiny = Tiny::make(1);
        let folder = root().join("tests/golden/forward");
        let record = |judge: &str, model: &str| -> serde_json::Value {
            let path = folder.join(judge).with_extension("json");
            let text = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let record: serde_json::Value = serde_json::from_slice(&text).expect("a JSON record");
            assert_eq!(
                record["model_sha256"],
                sha256(&tiny.path(model)),
                "{judge}: another model"
            );
            assert_eq!(
                record["ids_sha256"],
                sha256(&tiny.path("ids.json")),
                "{judge}: other ids"
            );
            record
        };
        record("llama", "tiny.gguf");
        let positions = record("mlx", "mlx/model.safetensors")["positions"].take();
        Golden {
            mlx: read_npy(&folder.join("mlx.npy")),
            positions: serde_json::from_value(positions).expect("positions"),
            llama: read_npy(&folder.join("llama.npy")),
            tiny,
        }
    }

    /// The reference on `model` against mlx-lm: what `test_forward_pass` checks.
    pub fn check_forward_pass(&self, model: Model) -> Result<(), String> {
        let vocab = model.config.vocab;
        let logits = score_with("reference", &Arc::new(model), &self.tiny.ids);
        if logits.len() != self.tiny.ids.len() || logits.iter().any(|row| row.len() != vocab) {
            return Err("the logits are not [tokens, vocabulary]".into());
        }
        let at_positions: Vec<Vec<f32>> =
            self.positions.iter().map(|&p| logits[p].clone()).collect();
        let worst = max(&row_errors(&at_positions, &self.mlx));
        if worst <= REFERENCE_ERROR {
            Ok(())
        } else {
            Err(format!(
                "relative L2 {worst:.1e} from mlx-lm, more than {REFERENCE_ERROR:.0e}"
            ))
        }
    }
}

fn sha256(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let digest = Sha256::digest(bytes);
    digest.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a String takes it");
        hex
    })
}
