//! Endpoints that stand in a file of their own.

use crate::file::EndpointForm;
use crate::file::forms::Either;
use crate::model::{Endpoint, Host};

/// Reads a list of endpoints, each with its share beside the others', as they stand in a configuration. `named` is whether
/// each must have a name rather than an address.
///
/// # Errors
///
/// What is wrong with it, in words.
pub fn endpoints(text: &str, named: bool) -> Result<Vec<(Endpoint, u32)>, String> {
    let forms: Vec<EndpointForm> = serde_yaml::from_str(text).map_err(|error| error.to_string().replace('\n', "; "))?;
    let mut endpoints: Vec<(Endpoint, u32)> = Vec::with_capacity(forms.len());
    for form in forms {
        let (endpoint, weight) = match form {
            Either::Short(endpoint) => (endpoint.0, 1),
            Either::Long(long) => (long.address.0, long.weight.0.0),
        };
        if named && matches!(endpoint.host, Host::Address(_)) {
            return Err(format!("it is not said which name the certificate of `{endpoint}` must have"));
        }
        if endpoints.iter().any(|(known, _)| *known == endpoint) {
            return Err(format!("`{endpoint}` is listed twice"));
        }
        endpoints.push((endpoint, weight));
    }
    if endpoints.is_empty() { Err("it has no endpoint".to_owned()) } else { Ok(endpoints) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_endpoints_is_a_list_as_in_a_configuration() {
        let read = |text: &str| {
            endpoints(text, false)
                .map(|found| found.iter().map(|(at, weight)| format!("{at} {weight}")).collect::<Vec<_>>())
        };
        assert_eq!(read("[a:1, { address: \"127.0.0.1:2\", weight: 3 }]").unwrap(), ["a:1 1", "127.0.0.1:2 3"]);
        assert_eq!(read("- a:1\n- \"[::1]:2\"\n").unwrap(), ["a:1 1", "[::1]:2 1"]);
        assert_eq!(read("[]").unwrap_err(), "it has no endpoint");
        assert_eq!(read("[a:1, a:1]").unwrap_err(), "`a:1` is listed twice");
        assert!(read("[a]").unwrap_err().contains("host and port"));
        assert!(read("a: 1").is_err() && read("").is_err() && read("[a:1").is_err());
        assert!(endpoints("[\"127.0.0.1:1\"]", true).is_err() && endpoints("[a:1]", true).is_ok());
    }
}
