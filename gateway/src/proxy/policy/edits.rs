//! Edits of headers: what is removed, then what is set, then what is appended. The names and the values without
//! placeholders are made with the snapshot.

use http::HeaderName;
use lockgate_config::model;
use pingora::http::{RequestHeader, ResponseHeader};

use super::template::{Asked, Text};

/// Edits of a header.
#[derive(Debug, Default)]
pub struct Edits {
    remove: Box<[HeaderName]>,
    set: Box<[(HeaderName, Text)]>,
    append: Box<[(HeaderName, Text)]>,
}

impl Edits {
    /// Returns the edits that a configuration asks for. Names that are none, which it refuses, are left out.
    pub fn new(edits: &model::HeaderEdits) -> Self {
        let values = |values: &[(String, model::Template)]| {
            let values = values.iter();
            values.filter_map(|(name, value)| Some((HeaderName::try_from(name).ok()?, Text::new(value)))).collect()
        };
        Self {
            remove: edits.remove.iter().filter_map(|name| HeaderName::try_from(name).ok()).collect(),
            set: values(&edits.set),
            append: values(&edits.append),
        }
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.append.is_empty()
    }

    /// Returns what is set, and what is appended, for a request. One vector is allocated, where there is any.
    pub fn values(&self, asked: &Asked<'_>) -> Values<'_> {
        let values = |texts: &'_ [(HeaderName, Text)]| -> Vec<_> {
            texts.iter().filter_map(|(name, text)| Some((name.clone(), text.value(asked)?))).collect()
        };
        Values { remove: &self.remove, set: values(&self.set), append: values(&self.append) }
    }
}

/// Edits with their values filled in: what they are made of may be what they change.
#[derive(Debug)]
pub struct Values<'a> {
    remove: &'a [HeaderName],
    set: Vec<(HeaderName, http::HeaderValue)>,
    append: Vec<(HeaderName, http::HeaderValue)>,
}

impl Values<'_> {
    /// Edits the header of a request.
    ///
    /// # Errors
    /// A header with more fields than fit.
    pub fn edit_request(self, header: &mut RequestHeader) -> pingora::Result<()> {
        for name in self.remove {
            header.remove_header(name);
        }
        for (name, value) in self.set {
            header.insert_header(name, value)?;
        }
        for (name, value) in self.append {
            header.append_header(name, value)?;
        }
        Ok(())
    }

    /// Edits the header of a response.
    ///
    /// # Errors
    /// A header with more fields than fit.
    pub fn edit_response(self, header: &mut ResponseHeader) -> pingora::Result<()> {
        for name in self.remove {
            header.remove_header(name);
        }
        for (name, value) in self.set {
            header.insert_header(name, value)?;
        }
        for (name, value) in self.append {
            header.append_header(name, value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::template::tests::{asked, request};
    use super::*;

    #[test]
    fn what_is_removed_goes_first_and_values_are_of_what_was_asked() {
        let template = |name: &str, text: &str| (name.to_owned(), text.parse().unwrap());
        let edits = Edits::new(&model::HeaderEdits {
            remove: vec!["x-a".into(), "x-b".into()],
            set: vec![template("x-b", "{path}"), template("x-empty", "{query}")],
            append: vec![template("x-c", "2"), template("x-b", "more")],
        });
        let mut header = request("/users/7");
        for (name, value) in [("x-a", "1"), ("x-b", "1"), ("x-c", "1")] {
            header.append_header(name, value).unwrap();
        }
        let asking = header.clone();
        edits.values(&asked(&asking)).edit_request(&mut header).unwrap();
        let all = |name: &str| {
            let values = header.headers.get_all(name).iter();
            values.map(|value| value.to_str().unwrap()).collect::<Vec<_>>().join(", ")
        };
        assert_eq!([all("x-a"), all("x-b"), all("x-c"), all("x-empty")], ["", "/users/7, more", "1, 2", ""]);
        assert!(!edits.is_empty() && Edits::default().is_empty());
    }
}
