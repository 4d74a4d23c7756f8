//! The device's own promises: errors in sentences, graphs that replay, memory that is where it says.

use crate::backend::cuda::{Device, Grid, Kernel};
use std::sync::Arc;

/// As kernels/repack.cu has it.
#[derive(Clone, Copy)]
#[repr(C)]
struct RopeTableArgs {
    table: u64,
    inv_freq: u64,
    positions: i32,
    concentration: f32,
}

const GRID: Grid = Grid {
    blocks: (1, 1, 1),
    threads: 128,
    shared: 0,
    dependent: true,
};

fn device() -> (Arc<Device>, Kernel) {
    let device = Device::open().expect("a GPU");
    let kernel = device.kernel("rope_table").expect("a kernel");
    (device, kernel)
}

#[test]
fn gpu_errors_are_sentences() {
    let (device, kernel) = device();
    let none = device.kernel("nonsense").err().expect("no such kernel");
    assert!(none.to_string().contains("`nonsense`"), "{none}");
    let short = device.launch(&kernel, GRID, &0u32).expect_err("too short");
    assert!(
        short
            .to_string()
            .contains("takes 24 bytes of arguments, not 4"),
        "{short}"
    );
    let large = device
        .alloc::<u8>(1 << 46, "the moon")
        .err()
        .expect("64 TiB");
    let large = large.to_string();
    assert!(
        large.contains("the moon: 70368.74 GB needed") && large.contains("free on"),
        "{large}"
    );
    let never = device
        .alloc::<f32>(usize::MAX, "it")
        .err()
        .expect("no such size");
    assert!(never.to_string().contains("address space"), "{never}");
    let grid = Grid {
        threads: 5000,
        ..GRID
    };
    let args = RopeTableArgs {
        table: 0,
        inv_freq: 0,
        positions: 0,
        concentration: 0.0,
    };
    let error = device
        .launch(&kernel, grid, &args)
        .expect_err("5000 threads");
    assert!(error.to_string().contains("`rope_table`"), "{error}");
    let error = Device::open_nth(1000).err().expect("no such GPU");
    assert!(error.to_string().contains("no GPU 1000"), "{error}");
    // None of these spoiled anything.
    device.synchronize().expect("still alive");
}

#[test]
fn gpu_graphs_repeat_what_they_recorded() {
    let (device, kernel) = device();
    let mut freq = device.alloc::<f32>(32, "frequencies").expect("room");
    freq.upload(0, &[0.0; 32]).expect("a copy");
    let mut table = device.alloc::<f32>(128, "a table").expect("room");
    table.zero().expect("zeros");
    let args = |at: usize, concentration| RopeTableArgs {
        table: table.at(at),
        inv_freq: freq.ptr(),
        positions: 1,
        concentration,
    };
    let (first, second) = (args(0, 2.0), args(64, 3.0));
    let graph = device.capture(|| {
        device.launch(&kernel, GRID, &first)?;
        device.launch(&kernel, GRID, &second)
    });
    let graph = graph.expect("a graph");
    let mut found = [9.0; 128];
    table.download(0, &mut found).expect("a copy");
    assert_eq!(found, [0.0; 128], "recording runs nothing");
    for _ in 0..2 {
        device.replay(&graph).expect("a replay");
    }
    table.download(0, &mut found).expect("a copy");
    // cos 0 and sin 0, by the concentration.
    let expected = |i: usize| [2.0, 0.0, 3.0, 0.0][i / 32];
    assert!(
        found.iter().enumerate().all(|(i, &f)| f == expected(i)),
        "{found:?}"
    );
    let failed = device.capture(|| Err(anyhow::anyhow!("half way")));
    assert!(
        failed
            .err()
            .expect("an error")
            .to_string()
            .contains("half way")
    );
    device
        .replay(&graph)
        .expect("a failed recording leaves the stream as it was");
    device.synchronize().expect("alive");
}

#[test]
fn gpu_copies_arrive_where_they_should() {
    let (device, _) = device();
    let mut pinned = device.pinned::<u32>(1000, "a buffer").expect("room");
    assert!(pinned.iter().all(|&v| v == 0));
    pinned.iter_mut().zip(0..).for_each(|(v, i)| *v = i);
    let mut a = device.alloc::<u32>(3000, "a").expect("room");
    a.zero().expect("zeros");
    device.upload_async(&a, 500, &pinned, 700).expect("a copy");
    device.copy(&a, 600, &a, 2000, 300).expect("a copy");
    let mut back = device.pinned::<u32>(3000, "a buffer").expect("room");
    let before = device.record().expect("an event");
    device
        .download_async(&a, 0, &mut back, 0, 3000)
        .expect("a copy");
    let after = device.record().expect("an event");
    after.wait().expect("the end");
    assert!(after.is_done().expect("known"));
    assert!(after.seconds_since(&before).expect("a time") >= 0.0);
    let expected = |i: usize| match i {
        500..1200 => i - 500,
        2000..2300 => i - 1900,
        _ => 0,
    };
    assert!(
        back.iter()
            .enumerate()
            .all(|(i, &v)| v as usize == expected(i))
    );
    a.upload(2998, &[7, 8]).expect("a copy");
    let mut end = [0; 3];
    a.download(2997, &mut end).expect("a copy");
    assert_eq!(end, [0, 7, 8]);
}
