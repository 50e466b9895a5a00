//! Reads the settings that the gateway hands over as JSON.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error, MapAccess, Visitor};

/// The settings of a filter that has none: anything but nothing is an error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NoSettings;

impl<'de> Deserialize<'de> for NoSettings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Nothing;

        impl<'de> Visitor<'de> for Nothing {
            type Value = NoSettings;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("no settings, as this filter has none")
            }

            fn visit_unit<E: Error>(self) -> Result<NoSettings, E> {
                Ok(NoSettings)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<NoSettings, A::Error> {
                match map.next_key::<String>()? {
                    Some(key) => Err(A::Error::custom(format_args!("unknown setting `{key}`: this filter has none"))),
                    None => Ok(NoSettings),
                }
            }
        }

        deserializer.deserialize_any(Nothing)
    }
}

/// Reads settings, with the path of the one that does not fit in the error.
pub(crate) fn read<S: DeserializeOwned>(text: &str) -> Result<S, String> {
    // No settings at all and an empty map are the same to an operator; a type that tells them apart sees `null` first.
    if text == "null" {
        return read_json("null").or_else(|_| read_json("{}"));
    }
    read_json(text)
}

fn read_json<S: DeserializeOwned>(text: &str) -> Result<S, String> {
    let mut json = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        // The place in the JSON is not a place in the operator's file: the path says it.
        let (line, column) = (error.line(), error.column());
        let message = error.to_string();
        let message = message.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&message);
        if path == "." { message.to_owned() } else { format!("`{path}`: {message}") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Limits {
        #[serde(default)]
        per_client: Client,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Client {
        requests: u32,
    }

    #[test]
    fn missing_settings_are_an_empty_map() {
        assert_eq!(read::<Limits>("null"), Ok(Limits { per_client: Client { requests: 0 } }));
        assert_eq!(read::<Client>("null"), Err("missing field `requests`".to_owned()));
        assert_eq!(read::<Option<Client>>("null"), Ok(None));
    }

    #[test]
    fn an_error_names_the_setting_and_no_place_in_the_json() {
        let wrong_type = read::<Limits>(r#"{"per_client": {"requests": "many"}}"#);
        assert_eq!(wrong_type, Err(r#"`per_client.requests`: invalid type: string "many", expected u32"#.to_owned()));
        let misspelt = read::<Limits>(r#"{"per_client": {"request": 5}}"#);
        assert_eq!(misspelt, Err("`per_client.request`: unknown field `request`, expected `requests`".to_owned()));
    }

    #[test]
    fn a_filter_without_settings_accepts_none() {
        assert_eq!(read::<NoSettings>("null"), Ok(NoSettings));
        assert_eq!(read::<NoSettings>("{}"), Ok(NoSettings));
        assert_eq!(read::<NoSettings>(r#"{"a": 1}"#), Err("unknown setting `a`: this filter has none".to_owned()));
        assert_eq!(
            read::<NoSettings>("[1]"),
            Err("invalid type: sequence, expected no settings, as this filter has none".to_owned())
        );
    }
}
