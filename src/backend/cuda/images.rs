//! The kernels that build.rs compiled, embedded, and their loading.
#![allow(unsafe_code)] // calls into the driver

use super::driver::check;
use anyhow::{Result, bail};
use cudarc::driver::sys::{self, CUresult};
use std::{collections::HashMap, ffi::CStr, ptr::null_mut, sync::atomic::AtomicU32};

/// One kernel file as build.rs compiled it.
struct Image {
    name: &'static str,
    /// Machine code of the GPUs that build.rs names.
    sass: &'static [u8],
    /// PTX for compute capability 8.0, for every other GPU.
    ptx: &'static [u8],
}

/// The driver reads images at their alignment.
#[repr(align(16))]
struct Aligned<const N: usize>([u8; N]);

macro_rules! embed {
    ($name:literal) => {
        Image {
            name: $name,
            sass: aligned!(concat!(env!("OUT_DIR"), "/", $name, ".sass")),
            ptx: aligned!(concat!(env!("OUT_DIR"), "/", $name, ".ptx")),
        }
    };
}
macro_rules! aligned {
    ($path:expr) => {{
        static BYTES: Aligned<{ include_bytes!($path).len() }> = Aligned(*include_bytes!($path));
        &BYTES.0
    }};
}
static IMAGES: &[Image] = &include!(concat!(env!("OUT_DIR"), "/modules.rs"));

/// Shared memory that a kernel may have without asking.
const SHARED: u32 = 48 << 10;
/// The variable that forces code for an older GPU, to test it.
const FORCE: &str = "GOSSAMER_CUDA_ARCH";

/// A kernel, loaded.
pub(super) struct Function {
    pub(super) name: String,
    pub(super) handle: sys::CUfunction,
    /// Bytes of its one argument.
    pub(super) args: usize,
    /// Dynamic shared memory asked for so far.
    pub(super) shared: AtomicU32,
}

/// All kernels, loaded; unloaded when dropped, for which their context must be current.
#[derive(Default)]
pub(super) struct Modules {
    modules: Vec<sys::CUmodule>,
    pub(super) functions: Vec<Function>,
    pub(super) by_name: HashMap<String, usize>,
    /// The compute capability that the code in use was made for.
    pub(super) arch: u32,
}

impl Modules {
    /// Loads every kernel into the current context of a GPU of compute capability `own`: machine code
    /// where there is some for it, else PTX, which the driver compiles (and keeps, so that only the
    /// first start is slow).
    pub(super) fn load(own: u32) -> Result<Modules> {
        let mut ptx = match std::env::var(FORCE) {
            Err(_) => false,
            Ok(text) if text == "80" => true,
            Ok(text) if text == own.to_string() => false,
            Ok(text) => bail!("{FORCE}={text}: expected 80, or {own} (this GPU's)"),
        };
        let load = |image: &[u8]| {
            let mut module = null_mut();
            // SAFETY: a whole image, aligned; the context is current; the pointer is to a handle.
            let result = unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) };
            (module, result)
        };
        let mut all = Modules::default();
        for image in IMAGES {
            let (mut module, mut result) = load(if ptx { image.ptx } else { image.sass });
            if !ptx && result == CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU {
                ptx = true;
                (module, result) = load(image.ptx);
            }
            check(result, || format!("loading the kernels `{}`", image.name))?;
            all.modules.push(module);
            all.list(module)?;
        }
        all.arch = if ptx { 80 } else { own };
        Ok(all)
    }

    /// Lists the functions of a module.
    fn list(&mut self, module: sys::CUmodule) -> Result<()> {
        let what = || String::from("listing kernels");
        let mut count = 0;
        // SAFETY: the module is loaded; the pointer is to an int.
        let result = unsafe { sys::cuModuleGetFunctionCount(&mut count, module) };
        check(result, what)?;
        let mut handles = vec![null_mut(); count as usize];
        // SAFETY: room for as many as are told.
        let result =
            unsafe { sys::cuModuleEnumerateFunctions(handles.as_mut_ptr(), count, module) };
        check(result, what)?;
        for handle in handles {
            let (mut name, mut offset, mut args) = (std::ptr::null(), 0, 0);
            // SAFETY: a function of this module; all pointers are to what is asked for.
            unsafe {
                check(sys::cuFuncLoad(handle), what)?;
                check(sys::cuFuncGetName(&mut name, handle), what)?;
            }
            // All kernels split a multiprocessor's memory alike: for another split it must run empty first,
            // and no kernel could start beside the one before.
            let split =
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
            // SAFETY: a function of this module. 100: all that can be shared memory is.
            let result = unsafe { sys::cuFuncSetAttribute(handle, split, 100) };
            check(result, what)?;
            // SAFETY: the driver gave a string that lives as long as the module.
            let name = unsafe { CStr::from_ptr(name) };
            let name = name.to_string_lossy().into_owned();
            // SAFETY: as above.
            let result = unsafe { sys::cuFuncGetParamInfo(handle, 0, &mut offset, &mut args) };
            check(result, || format!("kernel `{name}`: its argument"))?;
            self.by_name.insert(name.clone(), self.functions.len());
            self.functions.push(Function {
                name,
                handle,
                args,
                shared: AtomicU32::new(SHARED),
            });
        }
        Ok(())
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        for module in &self.modules {
            // SAFETY: loaded above, not used again. An error is of no use here.
            unsafe { sys::cuModuleUnload(*module) };
        }
    }
}
