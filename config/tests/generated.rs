//! The schema and the reference page that are checked in are those of the types.

use lockgate_config::{reference, schema};

const DUE: &str = "is out of date: run `cargo run -p lockgate-config --example generate`";

#[test]
fn the_schema_is_current() {
    let current = format!("{:#}\n", schema());
    assert!(current == include_str!("../lockgate.schema.json"), "lockgate.schema.json {DUE}");
}

#[test]
fn the_reference_is_current() {
    assert!(reference() == include_str!("../REFERENCE.md"), "REFERENCE.md {DUE}");
}
