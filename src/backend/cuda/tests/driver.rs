//! A driver that is old, broken or without a GPU is a sentence, on every machine: drivers of a few lines,
//! compiled here, take the real one's place.

use crate::backend::cuda::Device;
use std::{path::Path, process::Command};

/// What it says of itself comes from the environment.
const DRIVER: &str = r#"
#include <stdlib.h>
#include <string.h>
static int number(const char *name) { const char *text = getenv(name); return text ? atoi(text) : 0; }
int cuDriverGetVersion(int *version) { *version = number("FAKE_VERSION"); return 0; }
int cuInit(unsigned flags) { return number("FAKE_INIT"); }
int cuDeviceGetCount(int *count) { *count = number("FAKE_COUNT"); return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Old GPU", length); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 7 : attribute == 76 ? 5 : 1; /* compute capability 7.5 */
    return 0;
}
int cuGetErrorName(int error, const char **text) { *text = "CUDA_ERROR_OF_TEST"; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "test words"; return 0; }
"#;

fn compile(folder: &Path) {
    let source = folder.join("driver.c");
    std::fs::write(&source, DRIVER).expect("a file");
    let library = folder.join("libcuda.so");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status()
        .expect("cc runs");
    assert!(status.success());
    std::fs::copy(&library, folder.join("libcuda.so.1")).expect("a copy");
}

#[test]
fn what_is_wrong_with_a_driver_is_a_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    compile(folder.path());
    for (version, init, count, words) in [
        (
            12040,
            0,
            1,
            "made for CUDA 12.4, this program needs 13.0: update to driver 580",
        ),
        (13000, 100, 0, "finds no GPU"),
        (13000, 0, 0, "finds no GPU"),
        (13000, 803, 0, "restart the machine"),
        (
            13000,
            999,
            0,
            "doesn't start: test words (CUDA_ERROR_OF_TEST)",
        ),
        (
            13000,
            0,
            1,
            "Old GPU has compute capability 7.5, this program needs 8.0",
        ),
    ] {
        let output = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "--ignored", "--nocapture"])
            .arg("backend::cuda::tests::driver::opened_beside_another_driver")
            .env("LD_LIBRARY_PATH", folder.path())
            .env("FAKE_VERSION", version.to_string())
            .env("FAKE_INIT", init.to_string())
            .env("FAKE_COUNT", count.to_string())
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout);
        let said = said
            .lines()
            .find_map(|l| l.split_once("said: "))
            .map(|(_, l)| l);
        let said = said.unwrap_or_else(|| panic!("{output:?}"));
        assert!(said.starts_with("CUDA: ") && said.contains(words), "{said}");
        assert!(
            said.ends_with("or run on the processor with `--backend cpu`"),
            "{said}"
        );
    }
}

#[test]
#[ignore = "the test above runs it, with a driver of its own"]
fn opened_beside_another_driver() {
    let error = Device::open().err().expect("an error");
    println!("said: {error:#}");
}
