//! With the feature `cuda`: compiles the kernels, each file to code for several GPUs, and embeds them.
//! Without it: nothing.

use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::{Command, exit},
    sync::Mutex,
};

const KERNELS: &str = "src/backend/cuda/kernels";
/// Compute capabilities with machine code of their own. 90a has Hopper's own instructions; the others
/// run on every later GPU of the same generation. All newer GPUs compile the PTX when they first run it.
const ARCHS: &str = "80,89,90a,100,120";
/// The compute capability that the PTX is made for, the least that is supported.
const PTX: &str = "80";
const HOW_TO_GET_IT: &str = "Run ./tools/cuda.sh, which puts it into .venv-cuda/ out of PyPI's wheels \
    (nvidia-cuda-nvcc and others), or install the package cuda-toolkit-13-0 of NVIDIA's repository";
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed={KERNELS}");
    for name in [
        "GOSSAMER_NVCC",
        "GOSSAMER_CUDA_HOME",
        "GOSSAMER_CUDA_ARCHS",
        "CUDA_HOME",
        "PATH",
    ] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if let Err(error) = compile_all() {
        for line in error.lines() {
            println!("cargo::error={line}");
        }
        exit(1);
    }
}

/// Compiles what changed and writes the list that `module.rs` includes.
fn compile_all() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    let archs = env::var("GOSSAMER_CUDA_ARCHS").unwrap_or_else(|_| ARCHS.into());
    let (nvcc, version) = find_nvcc()?;
    let (mut sources, mut headers) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(KERNELS).map_err(|e| format!("{KERNELS}: {e}"))? {
        let path = entry.map_err(|e| format!("{KERNELS}: {e}"))?.path();
        match path.extension().and_then(|e| e.to_str()) {
            Some("cu") => sources.push(path),
            Some("cuh") => headers.push(path),
            _ => {}
        }
    }
    sources.sort();
    headers.sort();
    let mut common = DefaultHasher::new();
    version.hash(&mut common);
    for header in &headers {
        read(header)?.hash(&mut common);
    }
    let mut jobs = Vec::new();
    for source in &sources {
        // Machine code of all archs in one file, PTX in another, so that either can be chosen.
        for (suffix, codes) in [("sass", codes(&archs)), ("ptx", ptx_code())] {
            let name = source.file_stem().unwrap_or_default().to_string_lossy();
            let to = out.join(format!("{name}.{suffix}"));
            let mut key = common.clone();
            (read(source)?, &codes).hash(&mut key);
            let key = key.finish().to_string();
            if !to.exists() || fs::read_to_string(key_of(&to)).ok().as_ref() != Some(&key) {
                jobs.push((source.clone(), to, codes, key));
            }
        }
    }
    compile(&nvcc, jobs)?;
    let names = sources
        .iter()
        .filter_map(|s| s.file_stem())
        .map(|s| s.to_string_lossy().into_owned());
    let list: String = names.map(|n| format!("embed!({n:?}),\n")).collect();
    let to = out.join("modules.rs");
    fs::write(&to, format!("[\n{list}]\n")).map_err(|e| format!("{}: {e}", to.display()))
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// Where the hash of what a result was made from is kept.
fn key_of(result: &Path) -> PathBuf {
    let mut name = result.as_os_str().to_owned();
    name.push(".key");
    name.into()
}

fn codes(archs: &str) -> Vec<String> {
    let archs = archs.split(',').map(str::trim).filter(|a| !a.is_empty());
    archs
        .map(|a| format!("-gencode=arch=compute_{a},code=sm_{a}"))
        .collect()
}

fn ptx_code() -> Vec<String> {
    vec![format!("-gencode=arch=compute_{PTX},code=compute_{PTX}")]
}

/// Runs the compiler for each job, several at once; the first failures' messages are the error.
fn compile(nvcc: &Path, jobs: Vec<(PathBuf, PathBuf, Vec<String>, String)>) -> Result<(), String> {
    let at_once = env::var("NUM_JOBS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1usize);
    let threads = (at_once / jobs.len().max(1)).clamp(1, 8);
    let (jobs, errors) = (Mutex::new(jobs), Mutex::new(Vec::new()));
    let worker = || {
        while let Some((source, to, codes, key)) = jobs.lock().ok().and_then(|mut j| j.pop()) {
            let output = Command::new(nvcc)
                .args(["-fatbin", "-std=c++17", "-O3", "-Werror=all-warnings"])
                .arg(format!("--threads={threads}"))
                .args(&codes)
                .arg("-o")
                .args([&to, &source])
                .output();
            let error = match output {
                Err(e) => format!("{}: {e}", nvcc.display()),
                Ok(output) if !output.status.success() => {
                    let (text, more) = (&output.stderr, &output.stdout);
                    let text = [String::from_utf8_lossy(text), String::from_utf8_lossy(more)];
                    format!("nvcc {}: {}", source.display(), text.concat())
                }
                Ok(_) => match fs::write(key_of(&to), key) {
                    Ok(()) => continue,
                    Err(e) => format!("{}: {e}", to.display()),
                },
            };
            if let Ok(mut errors) = errors.lock() {
                errors.push(error);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..at_once {
            scope.spawn(worker);
        }
        worker();
    });
    let errors = errors.into_inner().unwrap_or_default();
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors.join("\n"))
    }
}

/// The compiler and what it says of itself. A folder named on purpose comes before what happens to
/// be installed.
fn find_nvcc() -> Result<(PathBuf, String), String> {
    let named = env::var_os("GOSSAMER_NVCC").map(PathBuf::from);
    if let Some(nvcc) = &named
        && let Err(error) = Command::new(nvcc).arg("--version").output()
    {
        return Err(format!("GOSSAMER_NVCC={}: {error}", nvcc.display()));
    }
    let home = |name| env::var_os(name).map(PathBuf::from);
    let candidates = named
        .into_iter()
        .chain(home("GOSSAMER_CUDA_HOME").into_iter().flat_map(in_home))
        .chain(in_home(".venv-cuda".into()))
        .chain(home("CUDA_HOME").into_iter().flat_map(in_home))
        .chain(["nvcc".into(), "/usr/local/cuda/bin/nvcc".into()]);
    for nvcc in candidates {
        let Ok(output) = Command::new(&nvcc).arg("--version").output() else {
            continue;
        };
        let version = String::from_utf8_lossy(&output.stdout).into_owned();
        let release = version.split("release ").nth(1).unwrap_or("");
        let major = release.split('.').next().and_then(|m| m.parse().ok());
        if major.is_none_or(|m: u32| m < 13) {
            let found = release.split(',').next().unwrap_or("?");
            return Err(format!(
                "{}: expected the CUDA compiler 13.0 or later, found {found}. {HOW_TO_GET_IT}",
                nvcc.display()
            ));
        }
        if !release.starts_with("13.0") {
            println!(
                "cargo::warning=PTX made by {} may need a newer driver than 580; GPUs with machine \
                 code in this build ({ARCHS}) are not affected",
                nvcc.display()
            );
        }
        return Ok((nvcc, version));
    }
    Err(format!(
        "the feature `cuda` needs NVIDIA's compiler nvcc 13.0 or later, found none in GOSSAMER_NVCC, \
         GOSSAMER_CUDA_HOME, .venv-cuda, CUDA_HOME, PATH and /usr/local/cuda. {HOW_TO_GET_IT}"
    ))
}

/// Where nvcc would be in a toolkit's folder, or in a Python environment with NVIDIA's wheels.
fn in_home(home: PathBuf) -> Vec<PathBuf> {
    let mut found = vec![home.join("bin/nvcc")];
    let libs = fs::read_dir(home.join("lib")).into_iter().flatten();
    found.extend(
        libs.flatten()
            .map(|python| python.path().join("site-packages/nvidia/cu13/bin/nvcc")),
    );
    found.retain(|nvcc| nvcc.exists());
    found
}
