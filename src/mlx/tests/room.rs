//! The room that a worker is given.

use super::*;
use crate::backend::Memory;

fn devices() -> [Device; 3] {
    let device = |name: &str, gpu, metal, free| Device {
        name: name.to_owned(),
        gpu,
        metal,
        free,
    };
    [
        device("cpu", false, false, None),
        device("NVIDIA", true, false, Some(3 << 30)),
        device("Apple", true, true, Some(1 << 20)),
    ]
}

#[test]
fn memory_bounds_the_context_whatever_computes() -> Result<()> {
    let (config, checkpoint) = (config()?, Checkpoint::open(&tiny().mlx)?);
    let Checkpoint::Folder(folder) = &checkpoint else {
        panic!("no folder");
    };
    let space = Space {
        slots: 4,
        cache_bytes: 1 << 20,
    };
    for device in devices() {
        let needs = Needs::new(folder, &config, device.clone());
        // A driver that is there changes nothing: what computes says whose memory it is.
        let own = needs.memory();
        match device.name.as_str() {
            "cpu" => assert!(own.free.is_some() && own.name == "this machine's memory"),
            _ => assert_eq!(own.free, device.free),
        }
        let memory = |free| Memory {
            name: "memory".into(),
            free: Some(free),
        };
        let whole = needs.room(&memory(u64::MAX), None, space)?;
        assert_eq!(
            (whole.context, whole.kv_tokens()),
            (config.context, 4 * config.context)
        );
        let floor = needs.footprint(4096, 4096, space).bytes();
        let mut last = 0;
        for more in [530 << 20, 545 << 20, 560 << 20] {
            let room = needs.room(&memory(floor + more), None, space)?;
            assert!(
                memory(floor + more).fits(&room.footprint) && room.context > last,
                "{device:?}"
            );
            assert!(
                room.context < config.context && room.bounded_by.is_some(),
                "{device:?}"
            );
            let longer = needs.room(&memory(floor + more), Some(room.context + 64), space);
            let refused = longer.expect_err("more than fits").to_string();
            assert!(
                refused.contains(&format!("--ctx-size {} fits", room.context)),
                "{refused}"
            );
            last = room.context;
        }
        let nothing = needs
            .room(&memory(1 << 20), None, space)
            .expect_err("no room");
        assert!(
            nothing.to_string().contains("The weights leave no room"),
            "{nothing}"
        );
    }
    // On the CPU values are twice as wide.
    let [cpu, nvidia, _] =
        devices().map(|device| Needs::new(folder, &config, device).token_bytes());
    assert_eq!(cpu, 2 * nvidia);
    Ok(())
}

#[test]
fn requests_that_would_outgrow_the_memory_wait() -> Result<()> {
    let (short, long) = (40, 300);
    let mlx = start(|options| (options.slots, options.kv_tokens) = (3, 2 * (short + long)))?;
    let ids = &tiny().ids;
    let ask = |prompt: usize| mlx.submit(request(&ids[..prompt], 300, greedy()));
    let times = |events| {
        let (_, usage) = collect(events).end.context("no end")?;
        Ok::<_, anyhow::Error>((usage.queue_time, usage.decode_time))
    };
    // Two of them are just what fits; the third waits until one is done.
    let (one, two, three) = (ask(short), ask(short), ask(short));
    let (one, two, three) = (times(one)?, times(two)?, times(three)?);
    assert!(
        two.0 < one.1 && three.0 > one.1,
        "{one:?} {two:?} {three:?}"
    );
    // Rows of a batch are as long as the longest: beside a longer one there is room for none.
    let (one, two) = (ask(short + 1), ask(short));
    let (one, two) = (times(one)?, times(two)?);
    assert!(two.0 > one.1, "{one:?} {two:?}");
    Ok(())
}
