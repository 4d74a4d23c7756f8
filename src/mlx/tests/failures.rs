//! Workers that die, hang, or can't be had.

use super::*;

/// Tokens of an answer that is still under way whenever something happens to it.
const ENDLESS: usize = 100_000;

/// Sends the worker a signal.
#[cfg(unix)]
fn signal(mlx: &MlxEngine, signal: rustix::process::Signal) -> Result<u32> {
    let id = mlx.worker().context("no worker")?;
    let pid = rustix::process::Pid::from_raw(id as i32).context("no process id")?;
    rustix::process::kill_process(pid, signal)?;
    Ok(id)
}

#[cfg(unix)]
#[test]
fn a_worker_that_is_killed_fails_its_requests_and_is_replaced() -> Result<()> {
    let mlx = start(|options| options.slots = 3)?;
    let ids = &tiny().ids;
    let ask = |tokens| mlx.submit(request(&ids[..50], tokens, greedy()));
    let expected = collect(ask(5)).tokens;
    let mut live: Vec<_> = (0..3).map(|_| ask(ENDLESS)).collect();
    live.iter_mut().for_each(until_token);
    let waits = ask(5);
    let killed = signal(&mlx, rustix::process::Signal::KILL)?;
    for events in live {
        match events.last() {
            Some(Event::Error(Failure::Unavailable { message, .. })) => {
                assert!(message.contains("signal 9"), "{message}")
            }
            other => panic!("{other:?}"),
        }
    }
    // It was not in the worker: the next one answers.
    assert_eq!(collect(waits).tokens, expected);
    assert_eq!(collect(ask(5)).tokens, expected);
    assert_ne!(mlx.worker(), Some(killed));
    #[cfg(target_os = "linux")]
    assert!(
        !Path::new(&format!("/proc/{killed}")).exists(),
        "{killed} is a zombie"
    );
    let worker = mlx.worker().context("no worker")?;
    drop(mlx);
    #[cfg(target_os = "linux")]
    assert!(
        !Path::new(&format!("/proc/{worker}")).exists(),
        "{worker} is left"
    );
    Ok(())
}

#[cfg(unix)]
#[test]
fn a_worker_that_hangs_is_replaced_and_one_that_keeps_dying_is_not() -> Result<()> {
    let mlx = start(|options| {
        (options.patience.ping, options.patience.pong) = (Duration::from_millis(50), PATIENCE / 12);
    })?;
    let ids = &tiny().ids;
    let ask = || mlx.submit(request(&ids[..50], ENDLESS, greedy()));
    let mut live = ask();
    until_token(&mut live);
    signal(&mlx, rustix::process::Signal::STOP)?;
    let Some(Event::Error(Failure::Unavailable { message, .. })) = live.last() else {
        panic!("the hung worker's request ended otherwise");
    };
    assert!(message.contains("no sign of life"), "{message}");
    for _ in 0..2 {
        let mut live = ask();
        until_token(&mut live);
        signal(&mlx, rustix::process::Signal::KILL)?;
        assert!(matches!(
            live.last(),
            Some(Event::Error(Failure::Unavailable { .. }))
        ));
    }
    match collect(ask()).failure {
        Some(Failure::Unavailable {
            message,
            retry_after,
        }) => {
            assert!(message.contains("too often"), "{message}");
            assert!(retry_after > Duration::from_secs(60), "{retry_after:?}");
        }
        other => panic!("{other:?}"),
    }
    Ok(())
}

#[test]
fn what_can_not_be_loaded_is_told_by_its_last_words() -> Result<()> {
    let wrong = |change: &dyn Fn(&mut MlxOptions)| match start(change) {
        Ok(_) => String::new(),
        Err(error) => format!("{error:#}"),
    };
    let told = wrong(&|options| options.folder = PathBuf::from("/nowhere"));
    assert!(told.contains("no config.json in it"), "{told}");
    let broken = tempfile::tempdir()?;
    for (file, to) in [("config.json", 1.0), ("model.safetensors", 0.5)] {
        let bytes = std::fs::read(tiny().mlx.join(file))?;
        let end = (bytes.len() as f64 * to) as usize;
        std::fs::write(broken.path().join(file), &bytes[..end])?;
    }
    let told = wrong(&|options| options.folder = broken.path().to_path_buf());
    assert!(told.contains("the MLX worker failed"), "{told}");
    let hello = hello(&python())?;
    assert_eq!(hello.protocol, frame::PROTOCOL);
    Ok(())
}

#[cfg(unix)]
#[test]
fn a_python_that_says_nothing_is_not_waited_for_long() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let deaf = script(folder.path(), "exec sleep 1000");
    let patience = Patience {
        hello: Duration::from_millis(100),
        load: Duration::from_secs(5),
        ..Patience::default()
    };
    let why = scorer::hello_within(&deaf, patience).map_err(|error| error.to_string());
    assert!(
        matches!(&why, Err(why) if why.contains("said nothing for 0 s")),
        "{why:?}"
    );
    let started = start(|options| (options.python, options.patience) = (deaf, patience));
    let why = started.map(drop).map_err(|error| error.to_string());
    assert!(
        matches!(&why, Err(why) if why.contains("it did not say a word")),
        "{why:?}"
    );
    Ok(())
}

#[cfg(unix)]
#[test]
fn another_version_of_mlx_lm_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let old = rigged(
        folder.path(),
        "import mlx_lm; mlx_lm.__version__ = '0.26.3'",
    );
    let expected = "its Python has mlx-lm 0.26.3, expected";
    let told = hello(&old).map_err(|error| error.to_string());
    assert!(
        matches!(&told, Err(told) if told.contains(expected)),
        "{told:?}"
    );
    let told = start(|options| options.python = old).map(drop);
    let told = told.map_err(|error| error.to_string());
    assert!(
        matches!(&told, Err(told) if told.contains(expected)),
        "{told:?}"
    );
    Ok(())
}

/// Some ids make the model fail where they are read.
#[cfg(unix)]
const POISON: &str = "
from mlx_lm.models.gpt_oss import Model
real = Model.__call__
def call(self, ids, *rest, **more):
    seen = ids[0].tolist() if ids.shape[1] > 1 else []
    if 511 in seen:
        raise RuntimeError('[malloc] Unable to allocate 123 bytes.')
    if 510 in seen:
        raise ValueError('seeded')
    return real(self, ids, *rest, **more) * (float('nan') if 509 in seen else 1)
Model.__call__ = call";

#[cfg(unix)]
#[test]
fn a_prompt_that_fails_fails_alone() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let python = rigged(folder.path(), POISON);
    let mlx = start(|options| options.python = python)?;
    let worker = mlx.worker();
    let mut live: Vec<_> = (0..2)
        .map(|i| mlx.submit(request(&[1, 2, 3 + i], ENDLESS, greedy())))
        .collect();
    live.iter_mut().for_each(until_token);
    let with = |id| request(&[4, 5, id, 6, 7], 10, greedy());
    match collect(mlx.submit(with(511))).failure {
        Some(Failure::Unavailable {
            message,
            retry_after,
        }) => {
            assert!(message.contains("Unable to allocate"), "{message}");
            assert!(retry_after >= Duration::from_secs(1));
        }
        other => panic!("{other:?}"),
    }
    let scored = Request {
        prompt_logprobs: Some(1),
        ..with(509)
    };
    for (request, expected) in [(with(510), "ValueError: seeded"), (scored, "not finite")] {
        let failed = collect(mlx.submit(request)).failure;
        assert!(
            matches!(&failed, Some(Failure::Broken(why)) if why.contains(expected)),
            "{failed:?}"
        );
    }
    // More than what was on its way already.
    for _ in 0..50 {
        live.iter_mut().for_each(until_token);
    }
    assert_eq!(mlx.worker(), worker);
    let after = collect(mlx.submit(with(8)));
    assert_eq!(after.tokens.len(), 10);
    Ok(())
}

/// The first step that feeds 508 waits until a request and its mask wait too, and fails.
#[cfg(unix)]
const STUMBLE: &str = "
import gc
from mlx_lm.models.gpt_oss import Model
real, failed = Model.__call__, []
def call(self, ids, *rest, **more):
    if ids.shape[1] == 1 and not failed and 508 in ids.reshape(-1).tolist():
        failed.append(1)
        inbox = next(o for o in gc.get_objects() if type(o).__name__ == 'Inbox')
        with inbox.changed:
            inbox.changed.wait_for(lambda: inbox.messages and inbox.masks, 60)
        raise ValueError('seeded')
    return real(self, ids, *rest, **more)
Model.__call__ = call";

#[cfg(unix)]
#[test]
fn a_step_that_fails_costs_nobody_else_a_mask() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let python = rigged(folder.path(), STUMBLE);
    let mlx = start(|options| {
        options.python = python;
        options.patience.step = PATIENCE / 12;
    })?;
    let biased = Sampling {
        logit_bias: vec![(508, 100.0)],
        ..greedy()
    };
    let mut first = mlx.submit(request(&[1, 2, 3], 100, biased));
    until_token(&mut first);
    let masked = Request {
        constraint: Some(Box::new(seam::Script::new(&[9, 10, 11]))),
        ..request(&[1, 2, 3], 3, greedy())
    };
    let second = mlx.submit(masked);
    let last = first.last();
    assert!(
        matches!(&last, Some(Event::Error(Failure::Broken(why))) if why.contains("seeded")),
        "{last:?}"
    );
    assert_eq!(collect(second).tokens, [9, 10, 11]);
    Ok(())
}
