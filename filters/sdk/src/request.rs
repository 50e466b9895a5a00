use std::net::IpAddr;

use crate::bindings::imports::lockgate::filter::request as host;
use crate::header::HeaderError;

/// The request as the filters before this one left it: a live view, each method one call of the gateway.
#[derive(Debug)]
pub struct Request {
    // Made by the glue alone: what is not passed to a phase is not there in that phase.
    _private: (),
}

impl Request {
    pub(crate) fn current() -> Self {
        Self { _private: () }
    }

    /// `GET`, `POST`, …
    pub fn method(&self) -> String {
        host::method()
    }

    /// `http` or `https`, as the client used it.
    pub fn scheme(&self) -> String {
        host::scheme()
    }

    /// Host, and port where there is one: the `host` header or `:authority`.
    pub fn authority(&self) -> String {
        host::authority()
    }

    /// [`authority`](Self::authority) without the port, in lower case. An IPv6 address keeps its brackets.
    pub fn host(&self) -> String {
        host_of(&host::authority()).to_ascii_lowercase()
    }

    /// The path, normalised, without the query; starts with `/`.
    pub fn path(&self) -> String {
        host::path()
    }

    /// The query without its `?`; none where there is no `?`.
    pub fn query(&self) -> Option<String> {
        host::query()
    }

    /// Sets path and query (`/a/b?c=d`) for the target. The route and the tracks stay as they were decided. False, and
    /// nothing changed, where it is not a valid target in origin form, or the headers have been sent.
    #[must_use = "the gateway may have refused"]
    pub fn set_path_and_query(&self, target: &str) -> bool {
        host::set_path_and_query(target)
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

    /// The client's address as text, without a port.
    pub fn client_address(&self) -> String {
        host::client_address()
    }

    /// The client's address; none where the client has no IP address. An IPv4 address mapped to IPv6 is given as IPv4.
    pub fn client_ip(&self) -> Option<IpAddr> {
        host::client_address().parse().ok().map(|address: IpAddr| address.to_canonical())
    }

    /// The id of the request, as in the access log and in `x-request-id`.
    pub fn id(&self) -> String {
        host::id()
    }

    /// The name of the route that the request took.
    pub fn route(&self) -> String {
        host::route()
    }

    /// Chooses another of the upstreams that the route declares (`upstream` and `alternatives`). False, and nothing
    /// changed, where the route does not declare it, or the headers have been sent.
    #[must_use = "the gateway may have refused"]
    pub fn set_upstream(&self, name: &str) -> bool {
        host::set_upstream(name)
    }
}

/// The host of an authority. A port is what follows the last colon, unless that colon stands in brackets.
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_an_authority_without_its_port() {
        assert_eq!(host_of("example.com"), "example.com");
        assert_eq!(host_of("example.com:8080"), "example.com");
        assert_eq!(host_of("[::1]:8080"), "[::1]");
        assert_eq!(host_of("[::1]"), "[::1]");
        assert_eq!(host_of(""), "");
    }
}
