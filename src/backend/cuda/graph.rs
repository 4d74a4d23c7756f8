//! Launches recorded once and replayed, and marks in the stream to wait for and to time by.
#![allow(unsafe_code)] // calls into the driver

use super::{Device, driver::check};
use anyhow::Result;
use cudarc::driver::sys::{self, CUresult};
use std::{ptr::null_mut, sync::Arc};

/// Launches recorded once, to be replayed. What they point to must live as long.
pub struct Graph {
    device: Arc<Device>,
    exec: sys::CUgraphExec,
}
// SAFETY: as for `Device`.
unsafe impl Send for Graph {}

/// A mark in the stream.
pub struct Event {
    device: Arc<Device>,
    event: sys::CUevent,
}
// SAFETY: as for `Device`.
unsafe impl Send for Event {}

impl Device {
    /// Records what `body` starts, instead of running it.
    pub fn capture(self: &Arc<Self>, body: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.bind()?;
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let what = || String::from("recording a graph");
        // SAFETY: the stream lives as long as this.
        let result = unsafe { sys::cuStreamBeginCapture_v2(self.stream(), mode) };
        check(result, what)?;
        let done = body();
        let mut graph = null_mut();
        // SAFETY: as above; the pointer is to a handle.
        let ended = unsafe { sys::cuStreamEndCapture(self.stream(), &mut graph) };
        let mut exec = null_mut();
        let made = done.and_then(|()| check(ended, what)).and_then(|()| {
            // SAFETY: the graph was just made; the pointer is to a handle.
            let result = unsafe { sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0) };
            check(result, what)
        });
        if !graph.is_null() {
            // SAFETY: made above, and not used again.
            unsafe { sys::cuGraphDestroy(graph) };
        }
        made?;
        let device = self.clone();
        let graph = Graph { device, exec };
        // SAFETY: both live; puts it on the device, so that the first replay is as fast as others.
        check(unsafe { sys::cuGraphUpload(exec, self.stream()) }, what)?;
        Ok(graph)
    }

    /// Starts everything that `graph` recorded.
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        self.bind()?;
        // SAFETY: both live.
        let result = unsafe { sys::cuGraphLaunch(graph.exec, self.stream()) };
        check(result, || "replaying a graph".into())
    }

    /// Marks what was started so far.
    pub fn record(self: &Arc<Self>) -> Result<Event> {
        self.bind()?;
        let mut event = null_mut();
        let what = || String::from("recording an event");
        // SAFETY: the context is current; the pointer is to a handle.
        check(unsafe { sys::cuEventCreate(&mut event, 0) }, what)?;
        let device = self.clone();
        let event = Event { device, event };
        // SAFETY: both live.
        let result = unsafe { sys::cuEventRecord(event.event, self.stream()) };
        check(result, what)?;
        Ok(event)
    }
}

impl Event {
    /// Whether everything before it has ended.
    pub fn is_done(&self) -> Result<bool> {
        // SAFETY: it lives.
        match unsafe { sys::cuEventQuery(self.event) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => check(result, || "waiting for the GPU".into()).map(|()| true),
        }
    }

    /// Waits until everything before it has ended.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: it lives.
        check(unsafe { sys::cuEventSynchronize(self.event) }, || {
            "waiting for the GPU".into()
        })
    }

    /// Seconds on the GPU from `earlier` to this; both must have ended.
    pub fn seconds_since(&self, earlier: &Event) -> Result<f64> {
        let mut millis = 0.0;
        // SAFETY: both live; the pointer is to a float.
        let result = unsafe { sys::cuEventElapsedTime_v2(&mut millis, earlier.event, self.event) };
        check(result, || "timing".into())?;
        Ok(f64::from(millis) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: made by `record`, not used again.
            unsafe { sys::cuEventDestroy_v2(self.event) };
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.device.synchronize().is_ok() {
            // SAFETY: made by `capture`, run to its end, and not used again.
            unsafe { sys::cuGraphExecDestroy(self.exec) };
        }
    }
}
