//! Workers that die, hang, or can't be had.

use super::*;

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
    let mut live: Vec<_> = (0..3).map(|_| ask(400)).collect();
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
    let ask = || mlx.submit(request(&ids[..50], 400, greedy()));
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
    let told = wrong(&|options| options.python = PathBuf::from("/bin/ls"));
    assert!(told.contains("exit code 2"), "{told}");
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
