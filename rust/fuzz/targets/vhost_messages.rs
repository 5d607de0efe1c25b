//! Fuzz target: a front end of vhost-user that says anything, in any order, hurts nobody but itself.

#![no_main]

#[path = "../../core/tests/switch_guest/mod.rs"]
mod switch_guest;
#[path = "../../core/tests/vhost_front/mod.rs"]
mod vhost_front;
#[path = "../../core/tests/vhost_speaker/mod.rs"]
mod vhost_speaker;

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use vhost_speaker::{Speech, Stage};

thread_local! {
    /// One port for all inputs: what one leaves behind is there when the next one comes.
    static STAGE: RefCell<Stage> = RefCell::new(Stage::new());
}

fuzz_target!(|speech: Speech| STAGE.with_borrow_mut(|stage| stage.hear(&speech)));
