//! Damaged folders: each is refused with an error or read, without a panic.
//!
//! 500 cases by default, `GOSSAMER_FUZZ_CASES=10000` for the long run; `GOSSAMER_TEST_SEED` repeats one.

use crate::common::{
    fresh_seed,
    models::{Random, Tiny},
};
use gossamer::{checkpoint::Checkpoint, cli::inspect, convert::Conversion};
use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

/// Changes some bytes of a file, mostly where it is structure: at the front.
fn damage(random: &mut Random, path: &Path) {
    let whole = fs::read(path).unwrap();
    let mut bytes = whole.clone();
    let near = [64, 4096, bytes.len()][random.below(3)].min(bytes.len());
    match random.below(8) {
        0 => bytes.truncate(random.below(bytes.len())),
        1 => {
            let at = random.below(near);
            let end = (at + random.below(200)).min(bytes.len());
            bytes.drain(at..end);
        }
        2 => {
            let (at, from) = (random.below(near), random.below(bytes.len()));
            let copied = bytes[from..(from + 100).min(whole.len())].to_vec();
            bytes.splice(at..at, copied);
        }
        3 if bytes.len() > 8 => {
            let length = [u64::MAX, 1 << 40, 0, bytes.len() as u64, random.next()][random.below(5)];
            bytes[..8].copy_from_slice(&length.to_le_bytes());
        }
        _ => {
            // A digit or a letter that leaves JSON whole is worth more than noise.
            for _ in 0..1 + random.below(4) {
                let at = random.below(near);
                bytes[at] = match bytes[at] {
                    b'0'..=b'9' => b'0' + random.below(10) as u8,
                    b'a'..=b'z' => b'a' + random.below(26) as u8,
                    _ => random.next() as u8,
                };
            }
        }
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn damaged_folders_never_panic() {
    let cases = std::env::var("GOSSAMER_FUZZ_CASES").map_or(500, |n| n.parse().expect("a number"));
    let seed = fresh_seed();
    let mut random = Random(seed);
    let (mut refused, mut read) = (0, 0);
    let models =
        ["q8", "affine", "bf16"].map(|dense| Tiny::make_with(seed, dense, 1 + seed as usize % 2));
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path().join("model");
    for case in 0..cases {
        let tiny = &models[random.below(3)];
        let hf = tiny.path("hf");
        let from = if hf.exists() && random.below(2) == 0 {
            hf
        } else {
            tiny.path("mlx")
        };
        let _ = fs::remove_dir_all(&at);
        fs::create_dir(&at).unwrap();
        let mut names = Vec::new();
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, at.join(path.file_name().unwrap())).unwrap();
            names.push(path.file_name().unwrap().to_owned());
        }
        names.sort();
        let name = &names[random.below(names.len())];
        damage(&mut random, &at.join(name));
        let tried = catch_unwind(AssertUnwindSafe(|| -> anyhow::Result<()> {
            let checkpoint = Checkpoint::open(&at)?;
            let Checkpoint::Folder(folder) = &checkpoint else {
                unreachable!("it is a folder");
            };
            for json in [false, true] {
                inspect::report(&checkpoint, json)?;
            }
            checkpoint.check()?;
            checkpoint.tokenizer()?;
            checkpoint.load()?;
            Conversion::new(folder, false)?.write(&at.join("out.gguf"), |_| {})?;
            Ok(())
        }));
        match tried {
            Ok(Ok(())) => read += 1,
            Ok(Err(error)) => {
                refused += 1;
                let text = format!("{error:#}");
                assert!(
                    text.contains("model") && text.len() < 10_000,
                    "case {case}: {text}"
                );
            }
            Err(_) => {
                let kept = scratch.keep();
                panic!(
                    "case {case}: a panic on {} in {}",
                    name.display(),
                    kept.display()
                );
            }
        }
    }
    println!("{refused} refused, {read} read");
    assert!(
        refused > cases / 4 && read > cases / 20,
        "{refused} refused, {read} read"
    );
}
