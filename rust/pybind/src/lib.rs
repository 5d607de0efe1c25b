//! `vbnet._native`: conversions between Python and `vbnet-core`, nothing else.
//!
//! Operations are few and coarse, frames go in and out in batches, and whatever blocks or loops lets go of the
//! interpreter. Every error becomes a class of `vbnet.errors`; nothing here panics on what Python passes in.

use pyo3::prelude::*;
use vbnet_core::fastcall::{FastcallCounter, ServiceCounter};
use vbnet_core::net::switch::SwitchCounter;
use vbnet_core::port::PortCounter;
use vbnet_core::signals::{LineCounter, OutboxCounter};
use vbnet_core::timer::agenda::TimerCounter;
use vbnet_core::watch::CaptureCounter;
use vbnet_core::worker::WorkerCounter;

mod bellman;
mod bench;
mod capture;
mod counters;
mod errors;
mod fabric;
mod fastcall;
mod guests;
mod memory;
mod sched;
mod signals;
mod state;
mod timer;
mod turnstile;
mod venet;

/// Filled in below; `_native.pyi` is held to it by stubtest.
#[pymodule(gil_used = true)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("FAULT_REASONS", vbnet_core::error::Fault::REASONS.to_vec())?;
    module.add_function(wrap_pyfunction!(memory::wire_table, module)?)?;
    module.add_class::<memory::Ram>()?;
    module.add_class::<memory::View>()?;
    module.add_class::<state::Page>()?;
    module.add_class::<state::StateCodec>()?;
    module.add_class::<state::StatePublisher>()?;
    module.add_class::<state::StateSampler>()?;
    module.add_class::<state::StateRoll>()?;
    module.add_function(wrap_pyfunction!(state::state_page_bytes, module)?)?;
    module.add_function(wrap_pyfunction!(state::state_format, module)?)?;
    module.add_class::<counters::CounterFile>()?;
    module.add_class::<counters::CounterBlock>()?;
    module.add_class::<counters::Exposition>()?;
    module.add_function(wrap_pyfunction!(counters::read_counters, module)?)?;
    module.add_function(wrap_pyfunction!(counters::scan_counters, module)?)?;
    module.add_function(wrap_pyfunction!(counters::counter_labels, module)?)?;
    module.add_function(wrap_pyfunction!(counters::parse_counter_labels, module)?)?;
    module.add_function(wrap_pyfunction!(counters::histogram_quantile, module)?)?;
    module.add_function(wrap_pyfunction!(counters::histogram_bounds, module)?)?;
    module.add_class::<fabric::Fabric>()?;
    module.add_class::<capture::CaptureRings>()?;
    module.add_function(wrap_pyfunction!(capture::pcapng_head, module)?)?;
    module.add_function(wrap_pyfunction!(capture::pcapng_statistics, module)?)?;
    module.add("CAPTURE_COUNTERS", CaptureCounter::NAMES.to_vec())?;
    module.add("CAPTURE_RING_MIN", vbnet_core::shm::capture::CAPTURE_RING_MIN)?;
    module.add("CAPTURE_RING_MAX", vbnet_core::shm::capture::CAPTURE_RING_MAX)?;
    module.add_class::<bellman::Bellman>()?;
    module.add_class::<signals::Signals>()?;
    module.add_class::<signals::Apics>()?;
    module.add_class::<signals::IntcLevel>()?;
    module.add_class::<signals::IntcOutbox>()?;
    module.add_function(wrap_pyfunction!(signals::format_level, module)?)?;
    module.add("LEVEL_BYTES", vbnet_core::shm::intc::LEVEL_BYTES)?;
    module.add("LEVEL_SIGNAL_OFFSET", vbnet_core::shm::intc::LEVEL_SIGNAL_OFFSET)?;
    module.add("VECTORS", vbnet_core::shm::intc::VECTORS)?;
    module.add("PRIORITIES", vbnet_core::shm::intc::PRIORITIES)?;
    module.add("LINE_COUNTERS", LineCounter::NAMES.to_vec())?;
    module.add("OUTBOX_COUNTERS", OutboxCounter::NAMES.to_vec())?;
    module.add_class::<fastcall::FastcallService>()?;
    module.add_class::<fastcall::FastHandler>()?;
    module.add_class::<fastcall::FastSlot>()?;
    module.add("FASTCALL_COUNTERS", FastcallCounter::NAMES.to_vec())?;
    module.add("FASTCALL_SERVICE_COUNTERS", ServiceCounter::NAMES.to_vec())?;
    module.add("FASTCALL_SLOT_BYTES", vbnet_core::shm::layout::FASTCALL_SLOT_BYTES)?;
    module.add("FASTCALL_SIGNAL_OFFSET", vbnet_core::shm::layout::FASTCALL_SIGNAL_OFFSET)?;
    module.add("FASTCALL_DATA_BYTES", vbnet_core::shm::layout::FASTCALL_DATA_BYTES)?;
    module.add("FASTCALL_UNSERVED", vbnet_core::shm::fastcall::STATUS_UNSERVED)?;
    module.add_class::<timer::Timekeeper>()?;
    module.add_class::<timer::Timers>()?;
    module.add_class::<timer::TimersLayout>()?;
    module.add_class::<timer::Tick>()?;
    module.add_function(wrap_pyfunction!(timer::timer_now_ns, module)?)?;
    module.add("TIMER_COUNTERS", TimerCounter::NAMES.to_vec())?;
    module.add("PORT_COUNTERS", PortCounter::NAMES.to_vec())?;
    module.add("WORKER_COUNTERS", WorkerCounter::NAMES.to_vec())?;
    module.add("SWITCH_COUNTERS", SwitchCounter::NAMES.to_vec())?;
    module.add_class::<guests::StackGuests>()?;
    module.add_class::<guests::TrafficGuest>()?;
    module.add_class::<venet::VenetLayout>()?;
    module.add_class::<venet::Venet>()?;
    module.add_class::<venet::VenetTotals>()?;
    module.add_class::<venet::FrameView>()?;
    module.add_class::<venet::FrameClaim>()?;
    module.add_class::<sched::SchedCoordinator>()?;
    module.add_class::<sched::SchedPage>()?;
    module.add_class::<sched::SchedRecord>()?;
    module.add("SCHED_CLASSES", vbnet_core::sched::policy::Class::NAMES.to_vec())?;
    module.add("SCHED_REFUSALS", vbnet_core::sched::policy::Refusal::NAMES.to_vec())?;
    module.add("SCHED_COUNTERS", vbnet_core::sched::counter_names())?;
    module.add_class::<bench::BenchWindows>()?;
    module.add_class::<bench::BenchExchange>()?;
    module.add_class::<bench::BenchRange>()?;
    module.add_function(wrap_pyfunction!(bench::bench_probe, module)?)?;
    module.add_function(wrap_pyfunction!(bench::bench_placement, module)?)?;
    module.add_function(wrap_pyfunction!(bench::bench_bare, module)?)?;
    module.add_function(wrap_pyfunction!(bench::bench_ring, module)?)?;
    module.add_function(wrap_pyfunction!(bench::bench_polled, module)?)?;
    module.add_function(wrap_pyfunction!(bench::bench_state_publish, module)?)?;
    module.add_function(wrap_pyfunction!(bench::bench_state_sample, module)?)?;
    module.add_function(wrap_pyfunction!(bench::bench_asleep, module)?)?;
    module.add_function(wrap_pyfunction!(bench::bench_signal_latency, module)?)?;
    module.add_function(wrap_pyfunction!(bench::bench_signal_raise, module)?)?;
    module.add_function(wrap_pyfunction!(bench::bench_signal_wakeups, module)?)?;
    module.add_function(wrap_pyfunction!(bench::bench_fastcall, module)?)?;
    module.add_function(wrap_pyfunction!(bench::bench_fastcalls, module)?)?;
    module.add_function(wrap_pyfunction!(bench::bench_signal_end, module)?)?;
    module.add_function(wrap_pyfunction!(bench::bench_timer_arm, module)?)?;
    module.add_function(wrap_pyfunction!(bench::bench_timer_late, module)?)?;
    module.add_function(wrap_pyfunction!(bench::bench_timer_bare, module)?)?;
    Ok(())
}
