//! From the core's errors to the classes of `vbnet.errors`.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use vbnet_core::error::Error;

/// Makes the Python exception that means the same, with the values as its fields.
pub(crate) fn raise(py: Python<'_>, error: Error) -> PyErr {
    let message = error.to_string();
    let fields = PyDict::new(py);
    let filled = || -> PyResult<&'static str> {
        Ok(match &error {
            Error::Usage(_) => "UsageError",
            Error::NotFound(_) => "NotFoundError",
            Error::Exists(_) => "ExistsError",
            Error::Closed(_) => "ClosedError",
            Error::Busy(_) => "BusyError",
            Error::PeerGone(_) => "PeerGone",
            Error::Peer(fault) => {
                fields.set_item("rule", fault.reason())?;
                "PeerFault"
            }
            Error::Machine { doing, source } => {
                fields.set_item("errno", source.raw_os_error().unwrap_or(0))?;
                fields.set_item("doing", *doing)?;
                "ResourceError"
            }
        })
    };
    filled().and_then(|class| exception(py, class, &message, Some(&fields))).unwrap_or_else(|failure| failure)
}

/// An exception of `vbnet.errors` without fields.
pub(crate) fn raise_plain(py: Python<'_>, class: &str, message: &str) -> PyErr {
    exception(py, class, message, None).unwrap_or_else(|failure| failure)
}

fn exception(py: Python<'_>, class: &str, message: &str, fields: Option<&Bound<'_, PyDict>>) -> PyResult<PyErr> {
    let class = py.import("vbnet.errors")?.getattr(class)?;
    Ok(PyErr::from_value(class.call((message,), fields)?))
}

/// Shorthand for `map_err` where a `Python` is at hand.
pub(crate) trait OrRaise<T> {
    /// The value, or the Python exception.
    fn or_raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> OrRaise<T> for vbnet_core::error::Result<T> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| raise(py, error))
    }
}

impl<T> OrRaise<T> for Result<T, vbnet_core::error::Fault> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|fault| raise(py, Error::Peer(fault)))
    }
}
