//! The tiny model of seed 1 with the logits that other engines computed for it, and the checks that
//! the golden tests make; tests/mutations.rs shows that the same checks fail on a wrong model.

use super::{max, mean, models::Tiny, read_npy, root, row_errors, score_with, tool};
use gossamer::weights::{Format, Matrix, Model};
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

/// Every weight of `model` is, bit for bit, what the `gguf` package makes of the same file.
pub fn check_weights(tiny: &Tiny, model: &Model) -> Result<(), String> {
    let judged = tempfile::tempdir().map_err(|e| e.to_string())?;
    tool(
        "judge_gguf.py",
        &[&"read", &tiny.path("tiny.gguf"), &judged.path()],
    );
    let tensors = tensors(model);
    let files = std::fs::read_dir(judged.path()).map_err(|e| e.to_string())?;
    if files.count() != tensors.len() {
        return Err("the file has other tensors than the model".into());
    }
    for (name, ours) in tensors {
        let path = judged.path().join(format!("{name}.f32"));
        let theirs = std::fs::read(&path).map_err(|e| format!("{name}: {e}"))?;
        let ours: Vec<u8> = ours.iter().flat_map(|v| v.to_le_bytes()).collect();
        if ours != theirs {
            return Err(format!("{name} is not what the judge decodes"));
        }
    }
    Ok(())
}

/// Every tensor of a model by its name in the file, decoded.
pub fn tensors(model: &Model) -> Vec<(String, Vec<f32>)> {
    let decoded = |w: &Matrix| -> Vec<f32> {
        let mut values = vec![0.0; w.rows * w.cols];
        let rows = values.chunks_exact_mut(w.cols).enumerate();
        rows.for_each(|(row, values)| w.row_to_f32(row, values));
        values
    };
    let weights = &model.weights;
    let mut tensors = vec![
        ("token_embd.weight".into(), decoded(&weights.token_embd)),
        ("output.weight".into(), decoded(&weights.output)),
        ("output_norm.weight".into(), weights.output_norm.clone()),
    ];
    for (i, layer) in weights.layers.iter().enumerate() {
        let linears = [
            ("attn_q", &layer.q),
            ("attn_k", &layer.k),
            ("attn_v", &layer.v),
            ("attn_output", &layer.o),
            ("ffn_gate_inp", &layer.router),
            ("ffn_gate_exps", &layer.gate),
            ("ffn_up_exps", &layer.up),
            ("ffn_down_exps", &layer.down),
        ];
        for (name, linear) in linears {
            tensors.push((format!("blk.{i}.{name}.weight"), decoded(&linear.weight)));
            tensors.push((format!("blk.{i}.{name}.bias"), linear.bias.clone()));
        }
        for (name, values) in [
            ("attn_norm", &layer.attn_norm),
            ("attn_sinks", &layer.sinks),
            ("post_attention_norm", &layer.post_attention_norm),
        ] {
            tensors.push((format!("blk.{i}.{name}.weight"), values.clone()));
        }
    }
    tensors
}

/// `name` on `model` is near the reference's logits: what `every_format_is_near_the_reference` checks.
/// `most` bounds the median over positions of the relative L2. The mean may be 20 times that: where
/// two experts are nearly tied, noise decides, and such a position is far off in every engine.
pub fn check_near(
    name: &str,
    model: &Arc<Model>,
    ids: &[u32],
    reference: &[Vec<f32>],
    most: f64,
) -> Result<(), String> {
    let mut errors = row_errors(&score_with(name, model, ids), reference);
    errors.sort_by(f64::total_cmp);
    let (median, mean) = (errors[errors.len() / 2], mean(&errors));
    let found =
        format!("{name}: relative L2 from the reference, median {median:.1e}, mean {mean:.1e}");
    println!("{found}; allowed {most:.0e}");
    if median <= most && mean <= 20.0 * most {
        Ok(())
    } else {
        Err(found)
    }
}

/// Most that a back end's logits may differ from the reference's on weights of `format`. Blocks meet
/// int8 activations, floats meet floats and the f16 KV cache.
pub fn most_error(format: Format) -> f64 {
    match format {
        Format::Q8_0 | Format::MXFP4 => 2e-2,
        Format::F32 | Format::F16 | Format::BF16 => 2e-3,
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
