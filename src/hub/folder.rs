//! Models that are a folder: a configuration, a tokenizer and safetensors at the root of a repository.
//! (OpenAI's repositories hold the same weights twice more, in `original/` and `metal/`.)

use super::name::check_path;
use anyhow::{Result, ensure};
use std::{collections::HashMap, fs::File, io::Read, path::Path};

/// Without these it is no model.
const NEEDED: [&str; 2] = ["config.json", "tokenizer.json"];
/// Read where they are there.
const COMPANIONS: [&str; 5] = [
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    INDEX,
];
/// Says which file holds which tensor.
const INDEX: &str = "model.safetensors.index.json";
/// Most bytes of an index: that of the 120b model has some 100 kB.
const INDEX_LIMIT: u64 = 16 << 20;

/// A file of weights at the root, by the names that mlx-lm and transformers read.
fn is_shard(file: &str) -> bool {
    file.starts_with("model") && file.ends_with(".safetensors") && !file.contains('/')
}

/// The files that make the model, small ones first; `None` when there are no weights at the root.
///
/// # Errors
/// Weights without what is needed beside them.
pub(super) fn files(listed: &[String]) -> Result<Option<Vec<String>>> {
    let mut shards: Vec<String> = listed.iter().filter(|f| is_shard(f)).cloned().collect();
    if shards.is_empty() {
        return Ok(None);
    }
    let has = |name: &str| listed.iter().any(|f| f == name);
    for name in NEEDED {
        ensure!(
            has(name),
            "it holds safetensors, but no {name}: Gossamer needs both"
        );
    }
    shards.sort();
    shards.dedup();
    let small = NEEDED.into_iter().chain(COMPANIONS).filter(|f| has(f));
    Ok(Some(small.map(String::from).chain(shards).collect()))
}

/// Whether all of the model's files are under `root`: those that its index names, or the only one.
pub(super) fn is_whole(root: &Path) -> bool {
    let has = |name: &str| check_path(name).is_ok() && root.join(name).is_file();
    if !NEEDED.into_iter().all(has) {
        return false;
    }
    if !has(INDEX) {
        return has("model.safetensors");
    }
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let mut text = Vec::new();
    let read =
        File::open(root.join(INDEX)).and_then(|file| file.take(INDEX_LIMIT).read_to_end(&mut text));
    let index: Option<Index> = read.ok().and_then(|_| serde_json::from_slice(&text).ok());
    index.is_some_and(|index| {
        !index.weight_map.is_empty() && index.weight_map.values().all(|file| has(file))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(files: &[&str]) -> Result<Option<Vec<String>>> {
        let listed: Vec<String> = files.iter().map(|f| f.to_string()).collect();
        super::files(&listed)
    }

    #[test]
    fn what_lies_at_the_root_is_the_model() {
        let listed = [
            ".gitattributes",
            "README.md",
            "model-00001-of-00002.safetensors",
            "config.json",
            "metal/model.bin",
            "model-00000-of-00002.safetensors",
            "original/config.json",
            "original/model.safetensors",
            "tokenizer.json",
            "model.safetensors.index.json",
        ];
        let files = chosen(&listed).unwrap().unwrap();
        let expected = [
            "config.json",
            "tokenizer.json",
            "model.safetensors.index.json",
            "model-00000-of-00002.safetensors",
            "model-00001-of-00002.safetensors",
        ];
        assert_eq!(files, expected);
        assert_eq!(
            chosen(&["config.json", "original/model.safetensors"]).unwrap(),
            None
        );
        let told = chosen(&["config.json", "model.safetensors"]).unwrap_err();
        assert!(told.to_string().contains("tokenizer.json"), "{told}");
    }

    #[test]
    fn a_folder_is_whole_with_every_file_that_its_index_names() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        put("config.json", "{}");
        put("model.safetensors", "x");
        assert!(!is_whole(dir.path()), "no tokenizer.json");
        put("tokenizer.json", "{}");
        assert!(is_whole(dir.path()));
        put(
            INDEX,
            r#"{"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}"#,
        );
        put("m-1.safetensors", "x");
        assert!(!is_whole(dir.path()), "m-2 is missing");
        put("m-2.safetensors", "x");
        assert!(is_whole(dir.path()));
        for bad in [
            "{",
            r#"{"weight_map":{}}"#,
            r#"{"weight_map":{"a":"../../m.safetensors"}}"#,
        ] {
            put(INDEX, bad);
            assert!(!is_whole(dir.path()), "{bad}");
        }
    }
}
