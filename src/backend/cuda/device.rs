//! One GPU: its context, one stream on which everything runs in order, the kernels.
//!
//! Every call returns an error where the driver reports one. Since the stream runs behind, that may be
//! an error of earlier work.
#![allow(unsafe_code)] // calls into the driver

use super::{
    driver::{self, Properties, check},
    images::Modules,
    memory::{Buffer, Pinned, Plain},
};
use crate::hub::human;
use anyhow::{Result, anyhow, bail, ensure};
use cudarc::driver::sys::{self, CUresult};
use std::{
    ffi::{c_int, c_void},
    ptr::null_mut,
    sync::{Arc, atomic::Ordering},
};

/// A GPU, open. Dropped with the last buffer.
pub struct Device {
    properties: Properties,
    context: sys::CUcontext,
    stream: sys::CUstream,
    modules: Modules,
}
// SAFETY: the driver's handles may be used from any thread, where the context is made current first.
unsafe impl Send for Device {}
// SAFETY: as above; the driver guards its own state.
unsafe impl Sync for Device {}

/// A kernel of a [`Device`].
#[derive(Clone, Copy)]
pub struct Kernel(usize);

/// How a kernel is launched.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    /// Blocks in x, y and z.
    pub blocks: (u32, u32, u32),
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared: u32,
    /// It may start before the kernel before it ends; it waits for that one's results itself
    /// (`wait_for_previous`). Where the GPU can't, it starts after it.
    pub dependent: bool,
}

impl Device {
    /// Opens the first GPU.
    pub fn open() -> Result<Arc<Device>> {
        Device::open_nth(0)
    }

    /// Opens the GPU at `index`, in the driver's order.
    pub fn open_nth(index: usize) -> Result<Arc<Device>> {
        driver::start()?;
        let properties = Properties::of(index)?;
        let name = properties.name.clone();
        let handle = properties.handle;
        let mut device = Device {
            properties,
            context: null_mut(),
            stream: null_mut(),
            modules: Modules::default(),
        };
        // SAFETY: the driver is started; the pointer is to a handle.
        let result = unsafe { sys::cuDevicePrimaryCtxRetain(&mut device.context, handle) };
        check(result, || format!("opening {name}"))?;
        device.bind()?;
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is current; the pointer is to a handle.
        let result = unsafe { sys::cuStreamCreate(&mut device.stream, flags) };
        check(result, || "making a stream".into())?;
        device.modules = Modules::load(device.properties.capability)?;
        Ok(Arc::new(device))
    }

    /// Makes the context current on this thread.
    pub(super) fn bind(&self) -> Result<()> {
        // SAFETY: the context lives as long as this.
        check(unsafe { sys::cuCtxSetCurrent(self.context) }, || {
            format!("using {}", self.properties.name)
        })
    }

    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.properties.name
    }

    /// Its multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.properties.multiprocessors
    }

    /// The compute capability that its kernels were compiled for: 90 is 9.0. 80 where no machine code
    /// was made for this GPU, or where the environment's GOSSAMER_CUDA_ARCH says so.
    pub fn arch(&self) -> u32 {
        self.modules.arch
    }

    /// Most shared memory of a block, in bytes.
    pub fn shared_bytes(&self) -> u32 {
        self.properties.shared
    }

    /// Device memory, in bytes: free, and in all.
    pub fn memory(&self) -> Result<(u64, u64)> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the context is current; both pointers are to sizes.
        let result = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
        check(result, || "asking for free memory".into())?;
        Ok((free as u64, total as u64))
    }

    /// The kernel of that name, of any file.
    pub fn kernel(&self, name: &str) -> Result<Kernel> {
        let index = self.modules.by_name.get(name);
        let index = index.ok_or_else(|| anyhow!("no CUDA kernel `{name}` in this build"))?;
        Ok(Kernel(*index))
    }

    /// Room for `len` values, not set to anything; `what` is for the error.
    pub fn alloc<T: Plain>(self: &Arc<Self>, len: usize, what: &str) -> Result<Buffer<T>> {
        self.bind()?;
        let bytes = len.checked_mul(size_of::<T>());
        let bytes = bytes.ok_or_else(|| anyhow!("CUDA: {what}: larger than the address space"))?;
        let mut at = 0;
        // SAFETY: the context is current; the pointer is to an address.
        match unsafe { sys::cuMemAlloc_v2(&mut at, bytes.max(1)) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) = self.memory()?;
                bail!(
                    "{what}: {} needed, {} of {} free on {}",
                    human(bytes as u64),
                    human(free),
                    human(total),
                    self.name()
                )
            }
            result => check(result, || format!("allocating {what}"))?,
        }
        Ok(Buffer::new(self.clone(), at, len))
    }

    /// Page-locked host memory for `len` values, all zero.
    pub fn pinned<T: Plain>(self: &Arc<Self>, len: usize, what: &str) -> Result<Pinned<T>> {
        Pinned::new(self.clone(), len, what)
    }

    /// Starts a kernel; it runs after everything that was started before. `args` is the struct that it
    /// takes, laid out as there.
    pub fn launch<A: Copy>(&self, kernel: &Kernel, grid: Grid, args: &A) -> Result<()> {
        let function = &self.modules.functions[kernel.0];
        ensure!(
            size_of::<A>() == function.args,
            "CUDA: kernel `{}` takes {} bytes of arguments, not {}",
            function.name,
            function.args,
            size_of::<A>()
        );
        self.bind()?;
        let what = || format!("starting kernel `{}` ({grid:?})", function.name);
        if grid.shared > function.shared.load(Ordering::Relaxed) {
            use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MOST;
            // SAFETY: the function is loaded.
            let result =
                unsafe { sys::cuFuncSetAttribute(function.handle, MOST, grid.shared as c_int) };
            check(result, what)?;
            function.shared.store(grid.shared, Ordering::Relaxed);
        }
        let mut early = sys::CUlaunchAttribute {
            id:
                sys::CUlaunchAttributeID_enum::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: 1,
            },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: grid.blocks.0,
            gridDimY: grid.blocks.1,
            gridDimZ: grid.blocks.2,
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared,
            hStream: self.stream,
            attrs: &mut early,
            // Code for older GPUs doesn't wait by itself.
            numAttrs: (grid.dependent && self.modules.arch >= 90).into(),
        };
        let mut params = [std::ptr::from_ref(args).cast_mut().cast::<c_void>()];
        // SAFETY: the function takes one argument of that size, which is copied before the call returns.
        let result = unsafe {
            sys::cuLaunchKernelEx(&config, function.handle, params.as_mut_ptr(), null_mut())
        };
        check(result, what)
    }

    /// Waits until everything that was started has ended.
    pub fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream lives as long as this.
        check(unsafe { sys::cuStreamSynchronize(self.stream) }, || {
            "waiting for the GPU".into()
        })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.context.is_null() || self.bind().is_err() {
            return;
        }
        // SAFETY: made by `open`, not used again. Errors are of no use here.
        unsafe {
            if !self.stream.is_null() {
                sys::cuStreamSynchronize(self.stream);
                sys::cuStreamDestroy_v2(self.stream);
            }
        }
        self.modules = Modules::default();
        // SAFETY: as above.
        unsafe {
            sys::cuDevicePrimaryCtxRelease_v2(self.properties.handle);
        }
    }
}
