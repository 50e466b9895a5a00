use crate::bindings::imports::lockgate::filter::response as host;
use crate::header::HeaderError;

/// The response as the filters nearer to the target left it: a live view, each method one call of the gateway.
#[derive(Debug)]
pub struct Response {
    // Made by the glue alone, and only in phases in which there is a response.
    _private: (),
}

impl Response {
    pub(crate) fn current() -> Self {
        Self { _private: () }
    }

    /// 200 to 599.
    pub fn status(&self) -> u16 {
        host::status()
    }

    /// Sets the status: 200 to 599, but not to or from one without a body (204, 304); false otherwise, and nothing
    /// changed.
    #[must_use = "the gateway may have refused"]
    pub fn set_status(&self, status: u16) -> bool {
        host::set_status(status)
    }

    /// The first value of a header, by its name in any case.
    pub fn header(&self, name: &str) -> Option<Vec<u8>> {
        host::header(name)
    }

    /// As [`header`](Self::header), where the value is UTF-8, which HTTP does not promise; none where it is not.
    pub fn header_str(&self, name: &str) -> Option<String> {
        host::header(name).and_then(|value| String::from_utf8(value).ok())
    }

    /// All values of a header, in order.
    pub fn header_values(&self, name: &str) -> Vec<Vec<u8>> {
        host::header_values(name)
    }

    /// All headers, names in lower case, in order. Dearer than asking for those that are needed.
    pub fn headers(&self) -> Vec<(String, Vec<u8>)> {
        host::headers()
    }

    /// Sets a header to one value, in place of all it had.
    ///
    /// # Errors
    ///
    /// The gateway refused, and says why; the header is as it was.
    pub fn set_header(&self, name: &str, value: impl AsRef<[u8]>) -> Result<(), HeaderError> {
        host::set_header(name, value.as_ref()).map_err(|error| HeaderError::new(name, error))
    }

    /// Adds a value to a header.
    ///
    /// # Errors
    ///
    /// As for [`set_header`](Self::set_header).
    pub fn append_header(&self, name: &str, value: impl AsRef<[u8]>) -> Result<(), HeaderError> {
        host::append_header(name, value.as_ref()).map_err(|error| HeaderError::new(name, error))
    }

    /// Removes all values of a header. Not an error where it has none.
    ///
    /// # Errors
    ///
    /// As for [`set_header`](Self::set_header).
    pub fn remove_header(&self, name: &str) -> Result<(), HeaderError> {
        host::remove_header(name).map_err(|error| HeaderError::new(name, error))
    }
}
