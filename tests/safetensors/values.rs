//! Every weight, and what comes of them.

use crate::common::{
    cpu_backends, fresh_seed,
    golden::{REFERENCE_ERROR, check_near, most_error, tensors},
    max,
    models::Tiny,
    open, read_npy, row_errors, score, score_with, tool,
};
use gossamer::weights::{Format, Model};
use std::{path::Path, sync::Arc};

fn load(tiny: &Tiny, folder: &str) -> (Model, Vec<String>) {
    Model::load_with_notes(&tiny.open(folder)).expect("the folder loads")
}

/// The same names, and the same values bit for bit (but for the sign of zero).
fn assert_equal(ours: &Model, theirs: &Model) {
    let (ours, theirs) = (tensors(ours), tensors(theirs));
    assert_eq!(ours.len(), theirs.len());
    for ((name, ours), (other, theirs)) in ours.iter().zip(&theirs) {
        assert_eq!(name, other);
        assert!(ours == theirs, "{name} differs");
    }
}

/// In every form the folder's values are the GGUF file's, and so are the bits of the logits.
#[test]
fn a_folder_is_the_gguf_file_with_equal_weights() {
    let seed = fresh_seed();
    for (dense, shards, folders) in [
        ("q8", 2, &["mlx"][..]),
        ("bf16", 1, &["mlx", "hf"]),
        ("affine", 1, &["mlx"]),
    ] {
        let tiny = Tiny::make_with(seed, dense, shards);
        let file = Arc::new(tiny.load());
        let expected = score_with("reference", &file, &tiny.ids[..40]);
        for folder in folders {
            let (model, notes) = load(&tiny, folder);
            assert_equal(&model, &file);
            assert_eq!(notes.len(), usize::from(dense == "affine"), "{notes:?}");
            let cost = Model::check(&tiny.open(folder)).unwrap().cost;
            assert!(cost.notes[0].contains("rearranged at load, without rounding, into"));
            let with_offsets = model.weights.output.offsets.is_some();
            assert_eq!(with_offsets, dense == "affine", "{dense}");
            let model = Arc::new(model);
            assert!(
                score_with("reference", &model, &tiny.ids[..40]) == expected,
                "{dense} {folder}"
            );
            if dense != "affine" {
                // Q8_0 and floats are the very blocks of the file: so on every back end.
                let [a, b] = [&model, &file].map(|model| score_with("cpu", model, &tiny.ids[..40]));
                assert!(a == b, "{dense} {folder}: the processor's logits differ");
            }
        }
    }
}

/// mlx-lm on the very folder that we read, both layouts, with arbitrary scales and biases in two shards.
#[test]
fn reference_agrees_with_mlx_lm_on_the_same_folder() {
    let seed = fresh_seed();
    for (dense, folder) in [("affine", "mlx"), ("bf16", "hf")] {
        let tiny = Tiny::make_with(seed, dense, 2);
        let out = tiny.path("mlx.npy");
        let ids = tiny.path("ids.json");
        tool(
            "judge_mlx.py",
            &[&tiny.path(folder), &ids, &out, &"--rope", &"released"],
        );
        let (model, _) = load(&tiny, folder);
        let errors = row_errors(
            &score_with("reference", &Arc::new(model), &tiny.ids),
            &read_npy(&out),
        );
        println!("{dense}: worst {:.1e}", max(&errors));
        assert!(
            max(&errors) <= REFERENCE_ERROR,
            "{dense}: worst {:.1e}",
            max(&errors)
        );
    }
}

/// What mlx-lm's converter itself makes of OpenAI's layout, as people publish it, 8 bits and 4: mlx-lm runs it, and
/// all but the router stay integers here.
#[test]
fn what_mlx_lm_quantized_is_what_mlx_lm_runs() {
    let tiny = Tiny::make_with(fresh_seed(), "bf16", 1);
    for bits in ["8", "4"] {
        let name = format!("own-{bits}");
        let folder = tiny.path(&name);
        let (hf, ids, out) = (tiny.path("hf"), tiny.path("ids.json"), tiny.path("own.npy"));
        tool("judge_folder.py", &[&"quantize", &hf, &folder, &bits]);
        tool(
            "judge_mlx.py",
            &[&folder, &ids, &out, &"--rope", &"released"],
        );
        let (model, notes) = load(&tiny, &name);
        assert!(notes.is_empty(), "{notes:?}");
        let layer = &model.weights.layers[3];
        for matrix in [
            &model.weights.output,
            &model.weights.token_embd,
            &layer.q.weight,
            &layer.o.weight,
        ] {
            assert!(matrix.format == Format::Q8_0 && matrix.offsets.is_some());
        }
        assert_eq!(layer.router.weight.format, Format::F32);
        let model = Arc::new(model);
        let reference = score_with("reference", &model, &tiny.ids);
        let errors = row_errors(&reference, &read_npy(&out));
        println!("{bits} bits: worst {:.1e}", max(&errors));
        assert!(
            max(&errors) <= REFERENCE_ERROR,
            "{bits} bits: worst {:.1e}",
            max(&errors)
        );
        check_near(
            "cpu",
            &model,
            &tiny.ids,
            &reference,
            most_error(Format::Q8_0),
        )
        .unwrap();
    }
}

/// MLX's names of matrices by ours.
fn module(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let ["blk", layer, part, "weight"] = parts[..] else {
        let whole = [
            ("token_embd.weight", "model.embed_tokens"),
            ("output.weight", "lm_head"),
        ];
        let found = whole.iter().find(|(ours, _)| *ours == name);
        return found.map_or(String::new(), |(_, theirs)| theirs.to_string());
    };
    let own = match part {
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_gate_inp" => "mlp.router",
        "ffn_gate_exps" => "mlp.experts.gate_proj",
        "ffn_up_exps" => "mlp.experts.up_proj",
        "ffn_down_exps" => "mlp.experts.down_proj",
        _ => return String::new(),
    };
    format!("model.layers.{layer}.{own}")
}

/// Compares with the judge's files and returns how many there were.
fn check_against(judged: &Path, model: &Model) -> usize {
    let mut checked = 0;
    for (name, ours) in tensors(model) {
        let Ok(theirs) = std::fs::read(judged.join(format!("{}.f32", module(&name)))) else {
            continue;
        };
        let theirs = theirs
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        assert!(
            theirs.eq(ours.iter().copied()),
            "{name} is not what the judge decodes"
        );
        checked += 1;
    }
    let files = std::fs::read_dir(judged)
        .expect("the judge's folder")
        .count();
    assert_eq!(checked, files, "the judge decoded other matrices");
    checked
}

/// Affine values with arbitrary bf16 scales and biases, and MXFP4, as MLX itself decodes them.
#[test]
fn matrices_are_what_mlx_dequantizes() {
    let seed = fresh_seed();
    for dense in ["affine", "q8"] {
        let tiny = Tiny::make_with(seed, dense, 1);
        let judged = tempfile::tempdir().unwrap();
        tool(
            "judge_folder.py",
            &[&"values", &tiny.path("mlx"), &judged.path()],
        );
        let (model, notes) = load(&tiny, "mlx");
        assert_eq!(check_against(judged.path(), &model), 2 + 4 * 8);
        // One matrix has a scale that no f16 holds; all others stay integers.
        let k = &model.weights.layers[1].k.weight;
        assert_eq!(k.format == Format::F32, dense == "affine");
        let told = notes
            .iter()
            .filter(|n| n.contains("model.layers.1.self_attn.k_proj.weight"))
            .count();
        assert_eq!(told, usize::from(dense == "affine"), "{notes:?}");
        assert_eq!(model.weights.layers[0].k.weight.format, Format::Q8_0);
    }
}

/// OpenAI's blocks, with gate and up in turns, by a formula in numpy.
#[test]
fn openais_blocks_are_what_numpy_decodes() {
    let tiny = Tiny::make_with(fresh_seed(), "bf16", 1);
    let judged = tempfile::tempdir().unwrap();
    tool(
        "judge_folder.py",
        &[&"release", &tiny.path("hf"), &judged.path()],
    );
    assert_eq!(check_against(judged.path(), &load(&tiny, "hf").0), 4 * 3);
}

/// With offsets a product is as near to the reference as Q8_0's, the same on every instruction set, and however
/// a prompt is cut.
#[test]
fn offsets_keep_the_invariants_of_products() {
    let tiny = Tiny::make_with(fresh_seed(), "affine", 1);
    let model = Arc::new(load(&tiny, "mlx").0);
    let ids = &tiny.ids[..150];
    let reference = score_with("reference", &model, ids);
    let mut first: Option<Vec<Vec<f32>>> = None;
    for backend in cpu_backends() {
        check_near(&backend, &model, ids, &reference, most_error(Format::Q8_0)).unwrap();
        for piece in [1, 37, 150] {
            let logits = score(&mut *open(&model, &backend, 1, ids.len()), ids, piece);
            let expected = first.get_or_insert_with(|| logits.clone());
            assert!(*expected == logits, "{backend} in pieces of {piece}");
        }
    }
}
