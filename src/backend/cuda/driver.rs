//! The driver's own interface: whether it is there, whether it is new enough, and what its errors mean.
#![allow(unsafe_code)] // calls into the driver

use anyhow::{Result, anyhow, bail, ensure};
use cudarc::driver::sys::{self, CUresult};
use std::ffi::{CStr, c_char, c_int};

/// What every sentence about a missing GPU ends with.
const ELSE: &str = "or run on the processor with `--backend cpu`";
/// Why there may be none.
const NONE: &str = "the driver finds no GPU (`nvidia-smi` lists them; CUDA_VISIBLE_DEVICES hides some): add \
    one";
/// The driver that came with CUDA 13.0, the oldest that runs what nvcc 13.0 makes.
const DRIVER: &str = "580";

/// An error of the driver as a sentence, if it is one.
pub(super) fn check(result: CUresult, what: impl FnOnce() -> String) -> Result<()> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        error => Err(sentence(error, &what())),
    }
}

/// `error` of `what`, with what to do where that is known.
fn sentence(error: CUresult, what: &str) -> anyhow::Error {
    use CUresult::*;
    let advice = match error {
        CUDA_ERROR_ILLEGAL_ADDRESS
        | CUDA_ERROR_MISALIGNED_ADDRESS
        | CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUDA_ERROR_INVALID_PC
        | CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUDA_ERROR_LAUNCH_FAILED
        | CUDA_ERROR_ASSERT => {
            "; the GPU's work is lost, as after any such error: start the program again, and please \
             report this with the command that led to it"
        }
        CUDA_ERROR_ECC_UNCORRECTABLE
        | CUDA_ERROR_NVLINK_UNCORRECTABLE
        | CUDA_ERROR_CONTAINED
        | CUDA_ERROR_DEVICE_UNAVAILABLE
        | CUDA_ERROR_LAUNCH_TIMEOUT
        | CUDA_ERROR_UNKNOWN => {
            "; the GPU is lost to this program: `nvidia-smi` and the kernel's log (Xid) tell why"
        }
        CUDA_ERROR_SYSTEM_NOT_READY => "; is the machine's fabric manager running?",
        _ => "",
    };
    anyhow!("CUDA: {what}: {}{advice}", name(error))
}

/// An error's name and description in the driver's words.
fn name(error: CUresult) -> String {
    let text = |get: unsafe fn(CUresult, *mut *const c_char) -> CUresult| {
        let mut text = std::ptr::null();
        // SAFETY: the driver is loaded, since it gave the error; it sets the pointer or leaves it null.
        let known = unsafe { get(error, &mut text) };
        if known != CUresult::CUDA_SUCCESS || text.is_null() {
            return String::from("unknown");
        }
        // SAFETY: a string constant of the driver's.
        unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned()
    };
    let description = text(sys::cuGetErrorString);
    format!("{description} ({})", text(sys::cuGetErrorName))
}

/// Why there is no GPU to use.
pub(super) fn unusable(why: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("CUDA: {why}, {ELSE}")
}

/// Whether there is a driver at all, of whatever age.
pub fn is_there() -> bool {
    // SAFETY: only looks for the library.
    unsafe { sys::is_culib_present() }
}

/// Loads and starts the driver, after asking whether it is there and new enough.
pub(super) fn start() -> Result<()> {
    if !is_there() {
        let why = format!(
            "no NVIDIA driver here (libcuda.so.1 can't be loaded): install driver {DRIVER} or newer"
        );
        return Err(unusable(why));
    }
    // Anything beyond these two may be missing in an old driver.
    let mut version = 0;
    // SAFETY: the library is there, and the pointer is to an int.
    check(unsafe { sys::cuDriverGetVersion(&mut version) }, || {
        "asking for the driver's version".into()
    })?;
    let (major, minor) = (version / 1000, version % 1000 / 10);
    if major < 13 {
        let why = format!(
            "the NVIDIA driver here is made for CUDA {major}.{minor}, this program needs 13.0: update \
             to driver {DRIVER} or newer"
        );
        return Err(unusable(why));
    }
    // SAFETY: as above.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_SUCCESS => Ok(()),
        CUresult::CUDA_ERROR_NO_DEVICE => Err(unusable(NONE)),
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => Err(unusable(
            "the driver's library and its kernel module differ in version: restart the machine, as \
             after every update of the driver",
        )),
        error => Err(unusable(format!(
            "the driver doesn't start: {} (`nvidia-smi` may tell more): mend it",
            name(error)
        ))),
    }
}

/// How many GPUs the driver shows to this program.
pub(super) fn devices() -> Result<usize> {
    let mut count = 0;
    // SAFETY: the driver is started, and the pointer is to an int.
    check(unsafe { sys::cuDeviceGetCount(&mut count) }, || {
        "counting GPUs".into()
    })?;
    Ok(count.max(0) as usize)
}

/// Names of the GPUs that this program can use, in the driver's order; of none where there is no driver for them.
pub fn names() -> Vec<String> {
    let count = start().and_then(|()| devices()).unwrap_or(0);
    let name = |index| Some(Properties::of(index).ok()?.name);
    (0..count).filter_map(name).collect()
}

/// What is to be known of a GPU before it is used.
#[derive(Debug, Clone)]
pub(super) struct Properties {
    pub(super) handle: sys::CUdevice,
    pub(super) name: String,
    pub(super) multiprocessors: u32,
    /// Compute capability: 90 is 9.0.
    pub(super) capability: u32,
    /// Most shared memory of a block, in bytes.
    pub(super) shared: u32,
}

impl Properties {
    /// Those of the GPU at `index`, if this program can use it.
    pub(super) fn of(index: usize) -> Result<Properties> {
        let count = devices()?;
        if count == 0 {
            return Err(unusable(NONE));
        }
        if index >= count {
            bail!("CUDA: no GPU {index}: the driver shows {count}, numbered from 0");
        }
        let mut handle = 0;
        let what = || format!("opening GPU {index}");
        // SAFETY: the driver is started, and the pointer is to an int.
        let result = unsafe { sys::cuDeviceGet(&mut handle, index as c_int) };
        check(result, what)?;
        let mut name = [0 as c_char; 256];
        // SAFETY: the pointer is to as many characters as are told.
        let result = unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), 255, handle) };
        check(result, what)?;
        // SAFETY: it ends in a zero, since the last was not given away.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) };
        let name = name.to_string_lossy().into_owned();
        let attribute = |attribute| -> Result<u32> {
            let mut value = 0;
            // SAFETY: as above.
            let result = unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, handle) };
            check(result, what)?;
            Ok(value.max(0) as u32)
        };
        use sys::CUdevice_attribute_enum::*;
        let major = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        ensure!(
            major >= 8,
            unusable(format!(
                "{name} has compute capability {major}.{minor}, this program needs 8.0 or more (Ampere \
                 and later): use another GPU"
            ))
        );
        Ok(Properties {
            handle,
            multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            capability: major * 10 + minor,
            shared: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            name,
        })
    }
}
