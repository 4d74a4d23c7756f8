//! The demo model's held-out questions, greedily, by MLX, by the processor on the same folder, and by the
//! processor on the GGUF file: the same tokens, but for near-ties, which are listed in [`LIST`].

use super::{Demo, common};
use flate2::read::GzDecoder;
use gossamer::{
    backend::{KV_BLOCK, Limits},
    checkpoint::Checkpoint,
    engine::{Engine, EngineOptions, Event, NativeEngine, Request},
    harmony::Conversation,
    mlx::{MlxEngine, MlxOptions},
    sampler::Sampling,
};
use serde_json::Value;
use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    path::Path,
    time::Instant,
};

/// Where near-ties are listed, in the folder for what tests leave (`target/tmp`).
const LIST: &str = "mlx-heldout.tsv";

/// Tokens, and by how much each was likelier than the next likely one.
type Answer = Vec<(u32, f32)>;

/// Room for prompt and answer.
const CONTEXT: usize = 4096;
/// Longest answer.
const TOKENS: usize = 1000;
/// A choice between tokens that are so near to each other is one of rounding: the processor's activations
/// are int8.
const NEAR: f32 = 0.2;

fn prompts(checkpoint: &Checkpoint) -> (Vec<Vec<u32>>, Vec<u32>) {
    let tokenizer = checkpoint.tokenizer().expect("a vocabulary");
    let file = common::root().join("models/demo/heldout.jsonl.gz");
    let file = File::open(file).expect("the held-out items");
    let lines = BufReader::new(GzDecoder::new(file)).lines();
    let all: Vec<String> = lines.collect::<Result<_, _>>().expect("text");
    let step = match std::env::var("GOSSAMER_DEMO_ITEMS").as_deref() {
        Ok("all") => 1,
        // The file is sorted by kind: some of each.
        _ => all.len() / 50,
    };
    let prompt = |line: &String| {
        let item: Value = serde_json::from_str(line).expect("JSON");
        let conversation = item["conversation"].clone();
        let conversation: Conversation =
            serde_json::from_value(conversation).expect("a conversation");
        conversation.render(&tokenizer).expect("a prompt")
    };
    let prompts = all.iter().step_by(step).map(prompt).collect();
    (prompts, tokenizer.stop_ids())
}

/// Answers from an engine, which always has more to do than it can at once.
fn answers(engine: &dyn Engine, prompts: &[Vec<u32>], stop_ids: &[u32]) -> Vec<Answer> {
    let started = Instant::now();
    let submit = |prompt: &Vec<u32>| {
        engine.submit(Request {
            tokens: prompt.clone(),
            sampling: Sampling {
                temperature: 0.0,
                ..Sampling::default()
            },
            max_tokens: Some(TOKENS),
            stop_ids: stop_ids.to_vec(),
            logprobs: Some(2),
            ..Request::default()
        })
    };
    let mut all = Vec::new();
    for some in prompts.chunks(8 * engine.info().slots) {
        let events: Vec<_> = some.iter().map(submit).collect();
        for events in events {
            let mut answer = Answer::new();
            for event in events {
                match event {
                    Event::Token { id, top, .. } => answer.push((id, top[0].1 - top[1].1)),
                    Event::Error(failure) => panic!("{failure}"),
                    _ => {}
                }
            }
            all.push(answer);
        }
    }
    println!(
        "{} answers, {} tokens, {:.0} s: {}",
        all.len(),
        all.iter().map(Vec::len).sum::<usize>(),
        started.elapsed().as_secs_f64(),
        engine.info().backend
    );
    all
}

fn native(path: &Path) -> NativeEngine {
    let checkpoint = Checkpoint::open(path).expect("the model");
    let model = checkpoint.load().expect("its weights").into();
    let limits = Limits {
        slots: 16,
        kv_blocks: 16 * CONTEXT / KV_BLOCK,
        batch_tokens: 256,
        snapshots: 0,
    };
    let padding = checkpoint.tokenizer().expect("a vocabulary");
    let options = EngineOptions {
        context: CONTEXT,
        padding: padding.padding_ids().to_vec(),
        prefix_cache: false,
        ..EngineOptions::default()
    };
    NativeEngine::start(common::open_with(&model, "cpu", 2, limits), options).expect("an engine")
}

#[test]
fn greedy_answers_are_the_same_by_mlx_and_natively_from_folder_and_file() {
    let demo = Demo::new();
    let file = common::root().join("models/demo/demo.gguf");
    let checkpoint = Checkpoint::open(&demo.path()).expect("the folder");
    let (prompts, stop_ids) = prompts(&checkpoint);
    assert!(prompts.len() >= 50);
    let config = checkpoint.config().expect("its shape");
    let mut options = MlxOptions::new(common::python(), demo.path());
    (options.context, options.cache_bytes) = (CONTEXT, 0);
    let mlx = MlxEngine::start(&config, options).expect("an engine");
    let by_mlx = answers(&mlx, &prompts, &stop_ids);
    drop(mlx);
    let folder = answers(&native(&demo.path()), &prompts, &stop_ids);
    let gguf = answers(&native(&file), &prompts, &stop_ids);
    let ids = |answer: &Answer| answer.iter().map(|&(id, _)| id).collect::<Vec<_>>();
    // Nothing was rounded between the two files.
    for (i, (a, b)) in folder.iter().zip(&gguf).enumerate() {
        assert_eq!(ids(a), ids(b), "item {i}, folder and file");
    }
    let list = Path::new(env!("CARGO_TARGET_TMPDIR")).join(LIST);
    let mut list = File::create(list).expect("a file");
    writeln!(list, "item\ttoken\tby MLX\tnatively\tmargin, nats").expect("written");
    let mut different = 0;
    for (i, (ours, theirs)) in by_mlx.iter().zip(&folder).enumerate() {
        let apart = ours.iter().zip(theirs).position(|(a, b)| a.0 != b.0);
        let Some(at) = apart else {
            assert_eq!(ours.len(), theirs.len(), "item {i}");
            continue;
        };
        different += 1;
        let (a, b, margin) = (ours[at].0, theirs[at].0, ours[at].1);
        println!("item {i} parts at token {at}: margin {margin}");
        writeln!(list, "{i}\t{at}\t{a}\t{b}\t{margin}").expect("written");
        assert!(margin < NEAR, "item {i}: {a} and {b}");
    }
    println!("{different} of {} part", prompts.len());
    let most = (prompts.len() / 200).max(1);
    assert!(different <= most, "{different} of {}", prompts.len());
}
