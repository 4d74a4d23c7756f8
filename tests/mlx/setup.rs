//! `gossamer mlx setup`: what it makes, and what a setup that fails leaves behind.

use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

/// `gossamer mlx ARGS` with its data in `data`.
fn mlx(data: &Path, path: Option<&Path>, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gossamer"));
    command
        .arg("mlx")
        .args(args)
        .env_remove("GOSSAMER_MLX_PYTHON");
    command.env("XDG_DATA_HOME", data).env("HOME", data);
    if let Some(path) = path {
        command.env("PATH", path);
    }
    command.output().expect("the program runs")
}

fn error(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A folder of programs: `python3` is this script.
fn python(folder: &Path, script: &str) {
    let file = folder.join("python3");
    fs::write(&file, format!("#!/bin/sh\n{script}\n")).expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("executable");
}

#[test]
fn a_setup_that_fails_leaves_nothing_that_looks_ready() {
    let data = tempfile::tempdir().expect("a folder");
    let bin = tempfile::tempdir().expect("a folder");
    let told = error(&mlx(data.path(), None, &["status"]));
    assert!(
        told.contains("is not there: `gossamer mlx setup` makes it"),
        "{told}"
    );
    let setup = || {
        error(&mlx(
            data.path(),
            Some(bin.path()),
            &["setup", "--variant", "cpu"],
        ))
    };
    let told = setup();
    assert!(
        told.contains("needs Python 3.11 or newer, and none was found"),
        "{told}"
    );
    python(bin.path(), "echo 3.9");
    assert!(setup().contains("python3 is 3.9"), "{told}");
    // New enough; makes an environment whose pip fails, as it does when it is interrupted.
    let venv = r#"case "$*" in *version_info*) echo 3.12 ;; *venv*) /bin/mkdir -p "$3/bin"; /bin/ln -s "$0" "$3/bin/python3" ;; *) echo "no network" >&2; exit 1 ;; esac"#;
    python(bin.path(), venv);
    let told = setup();
    assert!(
        told.contains("no network") && told.contains("--require-hashes"),
        "{told}"
    );
    let folder = data.path().join("gossamer/mlx");
    assert!(folder.join("venv/bin/python3").exists());
    let told = error(&mlx(data.path(), None, &["status"]));
    assert!(told.contains("is not complete"), "{told}");
    // With packages that are not there.
    python(bin.path(), &venv.replace("exit 1", "exit 0"));
    let told = setup();
    assert!(
        told.contains("the environment for MLX does not work"),
        "{told}"
    );
    assert!(!folder.join("stamp").exists());
}

/// Fetches 80 MB from PyPI.
#[test]
#[ignore = "needs PyPI"]
fn pypi_setup_makes_an_environment_that_answers() {
    let data = tempfile::tempdir().expect("a folder");
    let good = |args: &[&str]| {
        let output = mlx(data.path(), None, args);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{told}");
        (String::from_utf8(output.stdout).expect("text"), told)
    };
    let (_, told) = good(&["setup", "--variant", "cpu"]);
    assert!(told.contains("ready: mlx (cpu"), "{told}");
    let (status, _) = good(&["status", "--json"]);
    let status: Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!(
        (&status["variant"], &status["hello"]["mlx_lm"]),
        (&"cpu".into(), &"0.32.2".into())
    );
    // Once is enough.
    let (_, told) = good(&["setup", "--variant", "cpu"]);
    assert!(told.contains("it is there already"), "{told}");
}
