//! Writes `lockgate.schema.json` and `REFERENCE.md` anew: `cargo run -p lockgate-config --example generate`. A test tells
//! when that is due.

use std::{fs, io, path::Path};

fn main() -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::write(folder.join("lockgate.schema.json"), format!("{:#}\n", lockgate_config::schema()))?;
    fs::write(folder.join("REFERENCE.md"), lockgate_config::reference())
}
