//! The guest's side of the bus: code that runs in guest processes and trusts nobody's completions.

pub mod venet;
