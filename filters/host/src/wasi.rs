//! WASI 0.2 on the inline lane: all of it links, and none of it waits for anything but the clock.
//!
//! Guests import far more than they use, so every interface is there. What a lean guest touches is answered by the
//! functions of this module, which run on a proxy thread and return at once (or by the deadline, where the guest
//! sleeps): standard output and error become log lines, the environment is empty, clocks and random numbers are real. What would be a way out is closed at its door:
//! there are no preopened folders, no socket can be made, no name looked up. The methods of what can therefore never
//! exist are stubs that trap; [`link`](crate::link) makes them from the component's own imports.
//!
//! Wasmtime's own synchronous WASI is no choice here: it blocks on the tokio runtime that the thread is driving, which
//! panics.

mod clocks;
mod io;
mod printer;
mod random;
mod stdio;

use wasmtime::component::{Linker, Resource, ResourceType};
use wasmtime::{Result, bail};
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p2::bindings::filesystem::types::DirectoryEntryStream;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily};

pub(crate) use self::printer::{Print, Printer};
pub(crate) use self::stdio::{Line, Stdio, text};
use crate::state::State;

/// The version under which all interfaces are linked. Any 0.2 that a component names is matched to it.
pub(crate) const VERSION: &str = "0.2.12";

// What handles to terminals, sockets and look-ups would be handles to. There are none.
struct TerminalInput;
struct TerminalOutput;
struct Network;
struct TcpSocket;
struct UdpSocket;
struct Lookup;

/// Links what a lean guest uses, and the closed doors.
pub(crate) fn link(linker: &mut Linker<State>) -> Result<()> {
    io::link(linker)?;
    clocks::link(linker)?;
    random::link(linker)?;
    link_cli(linker)?;
    link_filesystem(linker)?;
    link_sockets(linker)
}

fn interface(name: &str) -> String {
    format!("wasi:{name}@{VERSION}")
}

fn link_cli(linker: &mut Linker<State>) -> Result<()> {
    let mut environment = linker.instance(&interface("cli/environment"))?;
    environment.func_wrap("get-environment", |_, (): ()| Ok((Vec::<(String, String)>::new(),)))?;
    environment.func_wrap("get-arguments", |_, (): ()| Ok((Vec::<String>::new(),)))?;
    environment.func_wrap("initial-cwd", |_, (): ()| Ok((None::<String>,)))?;

    let mut exit = linker.instance(&interface("cli/exit"))?;
    exit.func_wrap("exit", |_, (status,): (Result<(), ()>,)| -> Result<()> {
        bail!("the filter exited with status {}", i32::from(status.is_err()))
    })?;
    exit.func_wrap("exit-with-code", |_, (code,): (u8,)| -> Result<()> {
        bail!("the filter exited with status {code}")
    })?;

    let no_terminal_input = ResourceType::host::<TerminalInput>();
    let no_terminal_output = ResourceType::host::<TerminalOutput>();
    linker.instance(&interface("cli/terminal-input"))?.resource("terminal-input", no_terminal_input, |_, _| Ok(()))?;
    linker
        .instance(&interface("cli/terminal-output"))?
        .resource("terminal-output", no_terminal_output, |_, _| Ok(()))?;
    let mut stdin = linker.instance(&interface("cli/terminal-stdin"))?;
    stdin.func_wrap("get-terminal-stdin", |_, (): ()| Ok((None::<Resource<TerminalInput>>,)))?;
    let mut stdout = linker.instance(&interface("cli/terminal-stdout"))?;
    stdout.func_wrap("get-terminal-stdout", |_, (): ()| Ok((None::<Resource<TerminalOutput>>,)))?;
    let mut stderr = linker.instance(&interface("cli/terminal-stderr"))?;
    stderr.func_wrap("get-terminal-stderr", |_, (): ()| Ok((None::<Resource<TerminalOutput>>,)))
}

fn link_filesystem(linker: &mut Linker<State>) -> Result<()> {
    let mut types = linker.instance(&interface("filesystem/types"))?;
    types.resource("descriptor", ResourceType::host::<Descriptor>(), |_, _| Ok(()))?;
    types.resource("directory-entry-stream", ResourceType::host::<DirectoryEntryStream>(), |_, _| Ok(()))?;
    let mut preopens = linker.instance(&interface("filesystem/preopens"))?;
    preopens.func_wrap("get-directories", |_, (): ()| Ok((Vec::<(Resource<Descriptor>, String)>::new(),)))
}

fn link_sockets(linker: &mut Linker<State>) -> Result<()> {
    linker
        .instance(&interface("sockets/network"))?
        .resource("network", ResourceType::host::<Network>(), |_, _| Ok(()))?;
    linker
        .instance(&interface("sockets/tcp"))?
        .resource("tcp-socket", ResourceType::host::<TcpSocket>(), |_, _| Ok(()))?;
    linker
        .instance(&interface("sockets/udp"))?
        .resource("udp-socket", ResourceType::host::<UdpSocket>(), |_, _| Ok(()))?;

    // The network is a token without powers: everything that takes it says no.
    let mut network = linker.instance(&interface("sockets/instance-network"))?;
    network.func_wrap("instance-network", |_, (): ()| Ok((Resource::<Network>::new_own(0),)))?;

    let mut lookup = linker.instance(&interface("sockets/ip-name-lookup"))?;
    lookup.resource("resolve-address-stream", ResourceType::host::<Lookup>(), |_, _| Ok(()))?;
    lookup.func_wrap("resolve-addresses", |_, (_network, _name): (Resource<Network>, String)| {
        Ok((Err::<Resource<Lookup>, _>(ErrorCode::AccessDenied),))
    })?;
    let mut tcp = linker.instance(&interface("sockets/tcp-create-socket"))?;
    tcp.func_wrap("create-tcp-socket", |_, (_family,): (IpAddressFamily,)| {
        Ok((Err::<Resource<TcpSocket>, _>(ErrorCode::AccessDenied),))
    })?;
    let mut udp = linker.instance(&interface("sockets/udp-create-socket"))?;
    udp.func_wrap("create-udp-socket", |_, (_family,): (IpAddressFamily,)| {
        Ok((Err::<Resource<UdpSocket>, _>(ErrorCode::AccessDenied),))
    })
}
