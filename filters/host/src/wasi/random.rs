//! `wasi:random`: bytes of the operating system, for the insecure interfaces too. It is what seeds a guest's hash
//! tables, and so what keeps clients from choosing keys that collide.

use rustix::rand::{GetRandomFlags, getrandom};
use wasmtime::component::Linker;
use wasmtime::{Result, bail};

use super::interface;
use crate::state::State;

/// Bytes that one call may ask for.
const BYTES_MAX: u64 = 64 << 10;

pub(super) fn link(linker: &mut Linker<State>) -> Result<()> {
    let mut random = linker.instance(&interface("random/random"))?;
    random.func_wrap("get-random-bytes", |_, (length,): (u64,)| Ok((bytes(length)?,)))?;
    random.func_wrap("get-random-u64", |_, (): ()| Ok((number()?,)))?;
    let mut insecure = linker.instance(&interface("random/insecure"))?;
    insecure.func_wrap("get-insecure-random-bytes", |_, (length,): (u64,)| Ok((bytes(length)?,)))?;
    insecure.func_wrap("get-insecure-random-u64", |_, (): ()| Ok((number()?,)))?;
    let mut seed = linker.instance(&interface("random/insecure-seed"))?;
    seed.func_wrap("insecure-seed", |_, (): ()| Ok(((number()?, number()?),)))
}

fn bytes(length: u64) -> Result<Vec<u8>> {
    if length > BYTES_MAX {
        bail!("{length} random bytes were asked for; the limit is {BYTES_MAX}");
    }
    let mut bytes = vec![0; length as usize];
    fill(&mut bytes)?;
    Ok(bytes)
}

fn number() -> Result<u64> {
    let mut bytes = [0; 8];
    fill(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

fn fill(mut bytes: &mut [u8]) -> Result<()> {
    while !bytes.is_empty() {
        // Reads of more than 256 bytes may be cut short by a signal.
        let filled = getrandom(&mut *bytes, GetRandomFlags::empty())?;
        bytes = &mut bytes[filled..];
    }
    Ok(())
}
