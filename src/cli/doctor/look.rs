//! Where `doctor` looks.

use super::{Finding, Machine};
use crate::{
    backend::cpu,
    hub::{self, Pulled, human},
    machine,
    mlx::{self, PYTHON_VARIABLE as PYTHON},
};
use anyhow::Result;

/// A gpt-oss-20b's file and what a short context takes beside it.
const ROOM_20B: u64 = 14_000_000_000;
/// What is said of MLX.
pub(super) const MLX: &str = "mlx";
/// The port that `serve` listens on unless told otherwise.
const PORT: u16 = 3000;

pub(super) fn machine() -> Machine {
    let build = if cfg!(debug_assertions) {
        ", a debug build"
    } else {
        ""
    };
    Machine {
        program: format!("{}{build}", env!("CARGO_PKG_VERSION")),
        system: machine::system_name(),
        cpu: machine::cpu_name(),
        processors: std::thread::available_parallelism().map_or(1, |n| n.get()),
        memory: machine::total_memory(),
        free: machine::available_memory(),
    }
}

pub(super) fn findings() -> Vec<Finding> {
    let mut found = vec![processor(), memory(), cuda(), mlx()];
    found.extend(models());
    found.push(port());
    found
}

fn processor() -> Finding {
    let isas = cpu::isas();
    let best = Finding::ready("cpu", isas.join(", "));
    match isas.first() {
        Some(&"scalar") | None => best.advising(
            "no instruction set of this processor that Gossamer has kernels for: it will be slow",
        ),
        Some(_) if cfg!(debug_assertions) => {
            best.advising("this is a debug build: `cargo build --release` makes a fast one")
        }
        Some(_) => best,
    }
}

fn memory() -> Finding {
    match machine::available_memory() {
        None => Finding::missing("memory", "this system doesn't tell how much is free"),
        Some(free) if free >= ROOM_20B => Finding::ready(
            "memory",
            format!("{} free: room for gpt-oss-20b", human(free)),
        ),
        Some(free) => Finding::problem(
            "memory",
            format!(
                "{} free; gpt-oss-20b takes about {}",
                human(free),
                human(ROOM_20B)
            ),
        )
        .advising("close other programs; `gossamer plan` tells what fits"),
    }
}

#[cfg(feature = "cuda")]
fn cuda() -> Finding {
    use crate::backend::cuda;
    if !cuda::is_there() {
        return Finding::missing("cuda", "no NVIDIA driver (libcuda.so.1)");
    }
    let device = match cuda::Device::open() {
        Ok(device) => device,
        Err(why) => return Finding::problem("cuda", format!("{why:#}")),
    };
    let memory = device.memory().map_or_else(
        |why| format!("{why:#}"),
        |(free, all)| format!("{} of {} free", human(free), human(all)),
    );
    let kernels = device.arch();
    Finding::ready(
        "cuda",
        format!("{}, {memory}, kernels for sm_{kernels}", device.name()),
    )
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Finding {
    let found = Finding::missing("cuda", "not in this build");
    match std::path::Path::new("/proc/driver/nvidia/version").exists() {
        true => found.advising(
            "this machine has an NVIDIA driver: `cargo build --release --features cuda` uses it",
        ),
        false => found,
    }
}

fn mlx() -> Finding {
    let status = match mlx::status(None) {
        Ok(status) => status,
        Err(why) => return Finding::problem(MLX, format!("{why:#}")),
    };
    let python = status.python.display();
    match (status.hello, status.problem) {
        (Some(hello), _) => Finding::ready(MLX, format!("{}, {python}", mlx::describe(&hello))),
        // A Python that was named has no MLX that works.
        (None, Some(why)) if status.variant.is_none() && std::env::var_os(PYTHON).is_some() => {
            let advice = format!(
                "{PYTHON} names this Python: install mlx-lm there, or unset it and use `gossamer mlx setup`"
            );
            Finding::problem(MLX, format!("{python}: {why}")).advising(advice)
        }
        (None, Some(why)) if status.python.exists() => {
            Finding::problem(MLX, why).advising("`gossamer mlx setup --force` makes it anew")
        }
        _ => Finding::missing(MLX, "not set up").advising("`gossamer mlx setup` does it"),
    }
}

/// The models in the cache.
pub(super) fn pulled() -> Result<Vec<Pulled>> {
    let settings = hub::Settings::from_env()?;
    Ok(hub::pulled(&settings.cache))
}

fn models() -> Vec<Finding> {
    let pulled = match pulled() {
        Ok(pulled) => pulled,
        Err(why) => return vec![Finding::problem("models", format!("{why:#}"))],
    };
    if pulled.is_empty() {
        let none = Finding::missing("models", "none pulled");
        return vec![none.advising("`gossamer pull gpt-oss-20b` fetches one, 12 GB")];
    }
    let each = pulled.into_iter().map(|model| {
        let text = format!(
            "{}, {}, {}",
            model.name,
            human(model.bytes),
            model.path.display()
        );
        Finding::ready("model", text)
    });
    each.collect()
}

fn port() -> Finding {
    match std::net::TcpListener::bind(("127.0.0.1", PORT)) {
        Ok(_) => Finding::ready("port", format!("{PORT} is free for `gossamer serve`")),
        Err(why) => Finding::problem("port", format!("{PORT}: {why}"))
            .advising("`gossamer serve --port N` takes another"),
    }
}
