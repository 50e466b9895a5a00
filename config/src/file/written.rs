//! The kinds of scalars: how each is read, written, and described to an editor.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

use super::grants::OutboundTo;
use super::plan::StepShort;
use crate::model::{Endpoint, FailureKind, HostPattern, ListenAddress, PathPattern};
use crate::text::{self, CollectorUrl, HeaderName, LogFormat, Method, TextError};
use crate::units::{self, ByteSize, Secret, Share, Weight};

/// What a scalar stands for.
pub(crate) trait Scalar: Sized {
    /// With its article: `a duration`.
    const KIND: &'static str;
    /// Which scalars of YAML are taken beside texts.
    const PLAIN: Plain = Plain::Text;

    fn read(text: &str) -> Result<Self, TextError>;

    /// Returns the text that reads back as the same value.
    fn write(&self) -> String;

    /// What an editor is told.
    fn schema() -> Schema {
        json_schema!({ "type": "string" })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plain {
    Text,
    /// Numbers too.
    Number,
    /// True and false too.
    Bool,
}

/// A scalar in a file. Texts are taken for all kinds, since that is what a variable expands to.
#[derive(Clone, Debug)]
pub(crate) struct Written<T>(pub(crate) T);

impl<'de, T: Scalar> Deserialize<'de> for Written<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);

        impl<T: Scalar> Reader<T> {
            fn read<E: de::Error>(text: &str) -> Result<Written<T>, E> {
                T::read(text).map(Written).map_err(E::custom)
            }

            fn plain<E: de::Error>(plain: Plain, value: impl fmt::Display) -> Result<Written<T>, E> {
                let text = value.to_string();
                match Self::read(&text) {
                    Ok(_) if T::PLAIN != plain => Err(E::custom(quoting(T::KIND, value))),
                    read => read,
                }
            }
        }

        impl<T: Scalar> Visitor<'_> for Reader<T> {
            type Value = Written<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::KIND)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Written<T>, E> {
                Self::read(text)
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Written<T>, E> {
                Self::plain(Plain::Number, value)
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Written<T>, E> {
                Self::plain(Plain::Number, value)
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Written<T>, E> {
                Self::plain(Plain::Number, value)
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Written<T>, E> {
                Self::plain(Plain::Bool, value)
            }
        }

        deserializer.deserialize_any(Reader(PhantomData))
    }
}

/// For the defaults in the schema.
impl<T: Scalar> Serialize for Written<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = self.write();
        match T::PLAIN {
            Plain::Bool => serializer.serialize_bool(text == "true"),
            Plain::Number => match text.parse::<u64>() {
                Ok(number) => serializer.serialize_u64(number),
                Err(_) => serializer.serialize_str(&text),
            },
            Plain::Text => serializer.serialize_str(&text),
        }
    }
}

impl<T: Scalar> Written<T> {
    pub(crate) fn write(&self) -> String {
        self.0.write()
    }
}

impl<T: Scalar> JsonSchema for Written<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        T::KIND.into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let mut schema = T::schema();
        let kind = T::KIND.trim_start_matches("an ").trim_start_matches("a ");
        schema.insert("title".into(), kind.into());
        schema
    }
}

/// A scalar's type, its kind, how it is read, how it is written, and an example for the schema.
macro_rules! scalar {
    ($type:ty, $kind:literal, $read:expr, $write:expr, $($example:literal),*) => {
        impl Scalar for $type {
            const KIND: &'static str = $kind;

            fn read(text: &str) -> Result<Self, TextError> {
                $read(text)
            }

            fn write(&self) -> String {
                $write(self)
            }

            fn schema() -> Schema {
                let mut schema = json_schema!({ "type": "string" });
                let examples: &[&str] = &[$($example),*];
                if !examples.is_empty() {
                    schema.insert("examples".into(), examples.into());
                }
                schema
            }
        }
    };
}

scalar!(
    ListenAddress,
    "an address and port, or `unix:` and a path",
    str::parse,
    Self::to_string,
    "0.0.0.0:8080",
    "127.0.0.1:9901",
    "unix:/run/lockgate/admin.sock"
);
scalar!(Endpoint, "a host and port", str::parse, Self::to_string, "127.0.0.1:3000", "app.internal:3000");
scalar!(
    OutboundTo,
    "a scheme and host, or an upstream",
    Self::parse,
    Self::to_string,
    "https://api.example.com",
    "https://*.example.com",
    "upstream:users"
);
scalar!(HostPattern, "a host", str::parse, Self::to_string, "api.example.com", "*.example.com");
scalar!(PathPattern, "a path", str::parse, Self::to_string, "/exact", "/below/*", "/users/{id}");
scalar!(IpNet, "a network", read_network, Self::to_string, "10.0.0.0/8", "::1/128");
scalar!(Method, "a method", Self::parse, |method: &Self| method.0.clone(), "GET");
scalar!(HeaderName, "a header's name", Self::parse, |name: &Self| name.0.clone(), "x-user-id");
scalar!(CookieName, "a cookie's name", CookieName::parse, |name: &Self| name.0.clone(), "sid");
scalar!(Token, "a protocol", Token::parse, |name: &Self| name.0.clone(), "websocket");
scalar!(FilePath, "a file or folder", FilePath::parse, |path: &Self| path.0.display().to_string(),);
scalar!(GuestPath, "an absolute path", GuestPath::parse, |path: &Self| path.0.clone(), "/data");
scalar!(Inside, "a file in a folder", Inside::parse, |file: &Self| file.0.clone(), "index.html");
scalar!(HeaderValue, "the value of a header", HeaderValue::parse, |value: &Self| value.0.clone(),);
scalar!(Secret, "a text that is kept secret", read_secret, Self::to_string, "${LOCKGATE_TOKEN}");
scalar!(String, "a text", |text: &str| Ok(text.to_owned()), Self::clone,);
scalar!(Name, "a name", Name::parse, |name: &Self| name.0.clone(),);

scalar!(Reference, "a name", Reference::parse, |name: &Self| name.0.clone(),);

scalar!(
    LogFormat,
    "`json`, `common`, `combined` or a template",
    str::parse,
    Self::to_string,
    "json",
    "combined",
    "{client} {method} {path} {status}"
);
scalar!(CollectorUrl, "the address of a collector", str::parse, Self::to_string, "http://127.0.0.1:4318");

scalar!(HttpPath, "a path", HttpPath::parse, |path: &Self| path.0.clone(),);
scalar!(HostText, "a host", HostText::parse, |text: &Self| text.0.clone(),);

/// The path of a request, with a query or without.
#[derive(Clone, Debug)]
pub(crate) struct HttpPath(pub(crate) String);

impl HttpPath {
    fn parse(text: &str) -> Result<Self, TextError> {
        let sound = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        sound
            .then(|| Self(text.to_owned()))
            .ok_or_else(|| TextError::new("a path such as `/healthz`, without spaces or `#`"))
    }
}

/// A host as it stands in a certificate or in a `host` header.
#[derive(Clone, Debug)]
pub(crate) struct HostText(pub(crate) String);

impl HostText {
    fn parse(text: &str) -> Result<Self, TextError> {
        let sound = !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':'));
        sound.then(|| Self(text.to_ascii_lowercase())).ok_or_else(|| TextError::new("a host such as `app.internal`"))
    }
}

/// The status of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) u16);

impl Scalar for Status {
    const KIND: &'static str = "a status";
    const PLAIN: Plain = Plain::Number;

    fn read(text: &str) -> Result<Self, TextError> {
        match text.trim().parse() {
            Ok(status @ 200..=599) => Ok(Self(status)),
            _ => Err(TextError::new("a status from 200 to 599")),
        }
    }

    fn write(&self) -> String {
        self.0.to_string()
    }

    fn schema() -> Schema {
        json_schema!({ "type": ["integer", "string"], "minimum": 200, "maximum": 599, "pattern": r"^[2-5][0-9]{2}$|\$\{" })
    }
}

/// A name that the file declares.
#[derive(Clone, Debug)]
pub(crate) struct Name(pub(crate) String);

impl Name {
    fn parse(text: &str) -> Result<Self, TextError> {
        text::check_name(text).map(|()| Self(text.to_owned()))
    }
}

/// A name that is declared elsewhere in the file. Whether it is, `resolve` finds out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference(pub(crate) String);

impl Reference {
    fn parse(text: &str) -> Result<Self, TextError> {
        Ok(Self(text.to_owned()))
    }
}

/// A protocol's name, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token(pub(crate) String);

impl Token {
    fn parse(text: &str) -> Result<Self, TextError> {
        match text::is_token(text) && !text.eq_ignore_ascii_case("h2c") {
            true => Ok(Self(text.to_ascii_lowercase())),
            false => Err(TextError::new("the name of a protocol, such as `websocket`")),
        }
    }
}

/// A name of a cookie; unlike that of a header, told apart by case.
#[derive(Clone, Debug)]
pub(crate) struct CookieName(pub(crate) String);

impl CookieName {
    fn parse(text: &str) -> Result<Self, TextError> {
        if text::is_token(text) {
            return Ok(Self(text.to_owned()));
        }
        Err(TextError::new("the name of a cookie").hint(format!("a name is made of {}", text::TOKEN_EXPECTED)))
    }
}

/// A path of a file or folder, not yet resolved against the configuration's folder.
#[derive(Clone, Debug)]
pub(crate) struct FilePath(pub(crate) PathBuf);

impl FilePath {
    fn parse(text: &str) -> Result<Self, TextError> {
        if text.is_empty() || text.contains('\0') {
            return Err(TextError::new("the path of a file"));
        }
        if text.contains("://") {
            return Err(
                TextError::new("the path of a file").hint("a file of this machine is asked for: fetch it first")
            );
        }
        Ok(Self(text.into()))
    }
}

/// Where a guest finds a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GuestPath(pub(crate) String);

impl GuestPath {
    fn parse(text: &str) -> Result<Self, TextError> {
        let expected = || TextError::new("an absolute path such as `/data`");
        let Some(inner) = text.strip_prefix('/') else {
            return Err(expected().hint("begin with `/`: it is where the function finds the folder"));
        };
        let sound = |segment: &str| !matches!(segment, "" | "." | "..") && !segment.contains('\0');
        match inner.is_empty() || inner.split('/').all(sound) {
            true => Ok(Self(text.to_owned())),
            false => Err(expected().hint("leave out `.`, `..`, double slashes and the one at the end")),
        }
    }
}

/// A path of a file inside a folder, with `/` between its segments.
#[derive(Clone, Debug)]
pub(crate) struct Inside(pub(crate) String);

impl Inside {
    fn parse(text: &str) -> Result<Self, TextError> {
        let expected = || TextError::new("the path of a file inside the folder, such as `index.html`");
        if text.starts_with('/') {
            return Err(expected().hint("it starts at the folder: leave the first `/` out"));
        }
        let served = |segment: &str| !segment.is_empty() && !segment.starts_with('.') && !segment.contains('\0');
        if !text.split('/').all(served) {
            return Err(expected().hint("no segment may be empty or begin with a dot: such files are not served"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// What can stand behind the colon of a header.
#[derive(Clone, Debug)]
pub(crate) struct HeaderValue(pub(crate) String);

impl HeaderValue {
    fn parse(text: &str) -> Result<Self, TextError> {
        if !text.is_empty() && text::is_value(text) {
            return Ok(Self(text.to_owned()));
        }
        Err(TextError::new("the value of a header: no control characters, and no space at its ends"))
    }
}

fn read_secret(text: &str) -> Result<Secret, TextError> {
    if text.is_empty() {
        return Err(TextError::new("a text that is not empty").hint("leave the field out for none"));
    }
    Ok(Secret::new(text.to_owned()))
}

fn read_network(text: &str) -> Result<IpNet, TextError> {
    let expected = || TextError::new("a network such as `10.0.0.0/8`, or one address");
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        return Ok(address.into());
    }
    let network: IpNet = text.parse().map_err(|_| expected())?;
    if network.addr() == network.network() {
        return Ok(network);
    }
    // Not rounded in silence: either the address or the length is a slip, and both change who is trusted.
    Err(expected().hint(format!("bits are set behind the prefix: write `{}`", network.trunc())))
}

/// Says what a number or a boolean must be to be a text.
pub(super) fn quoting(expected: &str, value: impl fmt::Display) -> String {
    format!("{expected}\nhint: put it in quotes: `\"{value}\"`")
}

/// With the type's unit: numbers without one are read too, and refused with a hint.
macro_rules! quantity {
    ($type:ty, $kind:literal, $read:expr, $write:expr, $pattern:literal, $example:literal) => {
        impl Scalar for $type {
            const KIND: &'static str = $kind;
            const PLAIN: Plain = Plain::Number;

            fn read(text: &str) -> Result<Self, TextError> {
                $read(text)
            }

            fn write(&self) -> String {
                $write(self)
            }

            fn schema() -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "examples": [$example] })
            }
        }
    };
}

const DURATION_PATTERN: &str = r"^[0-9]+(\.[0-9]+)? ?(ns|us|ms|s|m|h)$|\$\{";

/// A duration that may be nothing.
impl Scalar for Duration {
    const KIND: &'static str = "a duration";
    const PLAIN: Plain = Plain::Number;

    fn read(text: &str) -> Result<Self, TextError> {
        units::parse_duration(text)
    }

    fn write(&self) -> String {
        units::format_duration(*self)
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": DURATION_PATTERN, "examples": ["5ms", "1.5s", "2m"] })
    }
}

/// A duration longer than nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeout(pub(crate) Duration);

impl Scalar for Timeout {
    const KIND: &'static str = "a duration";
    const PLAIN: Plain = Plain::Number;

    fn read(text: &str) -> Result<Self, TextError> {
        match units::parse_duration(text)? {
            Duration::ZERO => Err(TextError::new("a duration longer than nothing").hint(format!(
                "there is always a limit; the longest is `{}`",
                units::format_duration(units::DURATION_MAX)
            ))),
            duration => Ok(Self(duration)),
        }
    }

    fn write(&self) -> String {
        units::format_duration(self.0)
    }

    fn schema() -> Schema {
        Duration::schema()
    }
}

quantity!(Weight, "a weight", str::parse, Self::to_string, r"^[0-9]+(\.[0-9]{1,2})? ?%$|\$\{", "5%");
quantity!(Share, "a share", str::parse, Self::to_string, r"^[0-9]+(\.[0-9]{1,2})? ?%$|\$\{", "0.5%");
quantity!(
    StepShort,
    "a weight, or `shadow`",
    str::parse,
    Self::to_string,
    r"^[0-9]+(\.[0-9]{1,2})? ?%$|^shadow$|\$\{",
    "50%"
);
quantity!(
    FailureKind,
    "a kind of failure",
    str::parse,
    Self::to_string,
    r"^(gateway_errors|upstream_5xx|filter_failures|[45]xx|[45][0-9][0-9])$|\$\{",
    "5xx"
);

impl Scalar for ByteSize {
    const KIND: &'static str = "a size";
    const PLAIN: Plain = Plain::Number;

    fn read(text: &str) -> Result<Self, TextError> {
        text.parse()
    }

    fn write(&self) -> String {
        self.to_string()
    }

    fn schema() -> Schema {
        json_schema!({
            "type": ["string", "integer"],
            "minimum": 0,
            "pattern": r"^[0-9]+(\.[0-9]+)? ?(B|[kKMGT]B|[KMGT]iB)?$|\$\{",
            "examples": ["16MiB", "64KiB", "1MB", 4096]
        })
    }
}

/// A whole number within bounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Whole<const MIN: u32, const MAX: u32>(pub(crate) u32);

impl<const MIN: u32, const MAX: u32> Scalar for Whole<MIN, MAX> {
    const KIND: &'static str = "a whole number";
    const PLAIN: Plain = Plain::Number;

    fn read(text: &str) -> Result<Self, TextError> {
        match text.trim().parse() {
            Ok(number) if (MIN..=MAX).contains(&number) => Ok(Self(number)),
            _ => Err(TextError::new(format!("a whole number from {MIN} to {MAX}"))),
        }
    }

    fn write(&self) -> String {
        self.0.to_string()
    }

    fn schema() -> Schema {
        json_schema!({ "type": ["integer", "string"], "minimum": MIN, "maximum": MAX, "pattern": r"^[0-9]+$|\$\{" })
    }
}

impl Scalar for bool {
    const KIND: &'static str = "`true` or `false`";
    const PLAIN: Plain = Plain::Bool;

    fn read(text: &str) -> Result<Self, TextError> {
        text.parse().map_err(|_| TextError::new("`true` or `false`"))
    }

    fn write(&self) -> String {
        self.to_string()
    }

    fn schema() -> Schema {
        json_schema!({ "type": ["boolean", "string"], "pattern": r"^(true|false)$|\$\{" })
    }
}
