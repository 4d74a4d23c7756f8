//! What is computed and chosen, against the reference back end and our own sampler.

use super::*;

#[test]
fn greedy_text_and_logprobs_are_the_reference_back_ends() -> Result<()> {
    let (mlx, native) = (start(|_| ())?, native(&[])?);
    assert!(
        mlx.info().backend.starts_with("mlx ("),
        "{}",
        mlx.info().backend
    );
    // One token, below and beyond the window, and several pieces.
    for len in [1, 2, 40, 130, 300] {
        let ask = || Request {
            logprobs: Some(3),
            prompt_logprobs: Some(2),
            ..request(&tiny().ids[..len], 20, greedy())
        };
        let (ours, theirs) = (collect(mlx.submit(ask())), collect(native.submit(ask())));
        assert_eq!(ours.tokens, theirs.tokens, "{len} tokens");
        assert_eq!(reason(&ours), Some(FinishReason::Length));
        assert_eq!(ours.prompt.len(), len);
        let told = |p: &PromptLogprob| (p.id, p.logprob.unwrap_or(0.0), p.top.clone());
        let pairs = ours.prompt.iter().zip(&theirs.prompt);
        let pairs = pairs.map(|(a, b)| (told(a), told(b)));
        let answers = ours.logprobs.iter().zip(&theirs.logprobs);
        let answers = answers.map(|(a, b)| ((0, a.0, a.1.clone()), (0, b.0, b.1.clone())));
        for (a, b) in pairs.chain(answers) {
            assert_eq!(a.0, b.0);
            assert!((a.1 - b.1).abs() < 1e-3, "{a:?}, expected {b:?}");
            assert_eq!(a.2.len(), b.2.len());
            for (a, b) in a.2.iter().zip(&b.2) {
                assert!(
                    a.0 == b.0 && (a.1 - b.1).abs() < 1e-3,
                    "{a:?}, expected {b:?}"
                );
            }
        }
    }
    let none = collect(mlx.submit(request(&tiny().ids[..50], 0, greedy())));
    assert_eq!(
        (none.tokens.len(), reason(&none)),
        (0, Some(FinishReason::Length))
    );
    Ok(())
}

#[test]
fn logits_and_layers_are_the_reference_back_ends() -> Result<()> {
    let ids = &tiny().ids;
    let model = Arc::new(Checkpoint::open(&tiny().gguf)?.load()?);
    let limits = Limits {
        slots: 1,
        kv_blocks: ids.len().div_ceil(KV_BLOCK),
        batch_tokens: 64,
        snapshots: 0,
    };
    let mut reference = BackendScorer::new(Box::new(Reference::new(model, limits)), 50);
    let mut mlx = MlxScorer::start(&python(), &tiny().mlx, false, &config()?)?;
    assert_eq!(mlx.vocab(), reference.vocab());
    let distance = |a: &[f32], b: &[f32]| {
        assert_eq!(a.len(), b.len());
        let square = |x: f32| f64::from(x) * f64::from(x);
        let apart: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
        (apart / b.iter().map(|&b| square(b)).sum::<f64>()).sqrt()
    };
    let rows = |scorer: &mut dyn Scorer, first| {
        let mut all = Vec::new();
        scorer.score(ids, first, &mut |position, logits| {
            all.push((position, logits.to_vec()));
            Ok(())
        })?;
        anyhow::Ok(all)
    };
    for first in [0, 70, ids.len() - 1] {
        let (ours, theirs) = (rows(&mut mlx, first)?, rows(&mut reference, first)?);
        assert_eq!(ours.len(), ids.len() - first);
        for ((at, a), (position, b)) in ours.iter().zip(&theirs) {
            assert_eq!(at, position);
            let apart = distance(a, b);
            assert!(apart < 1e-4, "{apart} at {at}");
        }
    }
    type Stages = BTreeMap<(Option<usize>, Stage), Vec<f32>>;
    let stages = |scorer: &mut dyn Scorer| {
        let mut all = Stages::new();
        scorer.trace(ids, &mut |piece| {
            let values = all.entry((piece.layer, piece.stage)).or_default();
            assert_eq!(values.len(), piece.start * piece.width);
            values.extend(piece.values);
            Ok(())
        })?;
        anyhow::Ok(all)
    };
    let (ours, theirs) = (stages(&mut mlx)?, stages(&mut reference)?);
    assert_eq!(ours.len(), 2 + 2 * config()?.layers);
    for (stage, values) in &ours {
        let apart = distance(values, theirs.get(stage).context("a stage of its own")?);
        assert!(apart < 1e-4, "{apart} after {stage:?}");
    }
    // A callback that fails leaves nothing behind for the next question.
    let failed = mlx.score(ids, 0, &mut |_, _| anyhow::bail!("enough"));
    assert_eq!(failed.map_err(|e| e.to_string()), Err("enough".to_owned()));
    assert_eq!(rows(&mut mlx, 299)?.len(), 1);
    assert!(mlx.memory()?.active > 1 << 20);
    // YaRN as mlx-lm has it is another model, a little.
    let mut upstream = MlxScorer::start(&python(), &tiny().mlx, true, &config()?)?;
    let (ours, theirs) = (rows(&mut upstream, 299)?, rows(&mut mlx, 299)?);
    assert!(distance(&ours[0].1, &theirs[0].1) > 1e-4);
    Ok(())
}

#[cfg(unix)]
#[test]
fn a_folder_may_have_any_name() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let odd = folder.path().join("gpt [q8] *?");
    std::os::unix::fs::symlink(&tiny().mlx, &odd)?;
    let mlx = MlxScorer::start(&python(), &odd, false, &config()?)?;
    assert_eq!(mlx.vocab(), 512);
    Ok(())
}

/// Every rule of the sampler at once and alone: what the worker chooses is what our sampler chooses from
/// the worker's logits.
#[test]
fn the_worker_samples_by_our_rules() -> Result<()> {
    let padding = [7, 8, 400];
    let mlx = start(|options| options.padding = padding.to_vec())?;
    let mut scorer = MlxScorer::start(&python(), &tiny().mlx, false, &config()?)?;
    let plain = Sampling::default();
    let cases = [
        ("temperature 0", greedy()),
        ("plain", plain.clone()),
        (
            "temperature",
            Sampling {
                temperature: 1.7,
                ..plain.clone()
            },
        ),
        (
            "top_k",
            Sampling {
                top_k: 5,
                ..plain.clone()
            },
        ),
        (
            "top_k 1",
            Sampling {
                top_k: 1,
                ..plain.clone()
            },
        ),
        (
            "top_p",
            Sampling {
                top_p: 0.7,
                temperature: 2.0,
                ..plain.clone()
            },
        ),
        (
            "min_p",
            Sampling {
                min_p: 0.05,
                temperature: 3.0,
                ..plain.clone()
            },
        ),
        (
            "all three",
            Sampling {
                top_k: 40,
                top_p: 0.8,
                min_p: 0.02,
                temperature: 2.5,
                ..plain.clone()
            },
        ),
        (
            "repetition",
            Sampling {
                repetition_penalty: 1.8,
                temperature: 0.0,
                ..plain.clone()
            },
        ),
        (
            "presence",
            Sampling {
                presence_penalty: 2.0,
                temperature: 0.5,
                ..plain.clone()
            },
        ),
        (
            "frequency",
            Sampling {
                frequency_penalty: 2.0,
                temperature: 0.5,
                ..plain.clone()
            },
        ),
        (
            "bias",
            Sampling {
                logit_bias: vec![(3, 100.0), (7, 100.0), (9, 99.9)],
                ..plain.clone()
            },
        ),
    ];
    // All of them together in one batch.
    let prompt = |i: usize| &tiny().ids[i..i + 20 + 10 * i];
    let seeded = |i: usize, sampling: &Sampling| Sampling {
        seed: Some(u64::MAX - i as u64),
        ..sampling.clone()
    };
    let ask = |i: usize, sampling| mlx.submit(request(prompt(i), 25, seeded(i, sampling)));
    let events: Vec<_> = cases
        .iter()
        .enumerate()
        .map(|(i, (_, s))| ask(i, s))
        .collect();
    let mut near = 0;
    for (i, (events, (name, sampling))) in events.into_iter().zip(&cases).enumerate() {
        let answer = collect(events);
        assert_eq!(answer.tokens.len(), 25, "{name}: {answer:?}");
        let ids = [prompt(i), &answer.tokens].concat();
        let sampling = seeded(i, sampling);
        let mut ours = Sampler::new(&sampling, 512, &padding, None, prompt(i));
        let mut expected = Vec::new();
        scorer.score(&ids, prompt(i).len() - 1, &mut |_, logits| {
            // The choice that follows the last token was not asked for.
            if expected.len() < answer.tokens.len() && expected == answer.tokens[..expected.len()] {
                expected.push(ours.sample(logits, &Mask::Any)?.id);
            }
            Ok(())
        })?;
        // Rounding may move a draw over a border, or a token over a limit: hardly ever.
        near += usize::from(expected != answer.tokens);
        assert!(
            answer.tokens.iter().all(|id| !padding.contains(id)),
            "{name}"
        );
        // Alone it is the same as among the others.
        let alone = collect(mlx.submit(request(prompt(i), 25, sampling)));
        near += usize::from(alone.tokens != answer.tokens);
        if name.starts_with("temperature 0") || *name == "repetition" {
            assert_eq!(
                (expected, &alone.tokens),
                (answer.tokens.clone(), &answer.tokens),
                "{name}"
            );
        }
    }
    assert!(near <= 1, "{near} of {} answers differ", 2 * cases.len());
    Ok(())
}
