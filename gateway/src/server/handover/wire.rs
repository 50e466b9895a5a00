//! What two gateways, or a gateway and `lockgate upgrade`, say to each other: one JSON object a line over a Unix socket,
//! with the listening sockets beside it. Unknown fields are ignored, so that different releases understand each other.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

use crate::server::socket::Name;

/// Sockets sent with one message at most; the kernel takes 253.
pub(in crate::server) const BATCH: usize = 64;

/// Bytes of a message at most. The longest is a batch of sockets' names, or a report on a configuration.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// What is said.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub(in crate::server) enum Message {
    /// `lockgate upgrade`: start this binary, and hand over to it.
    Upgrade {
        /// Absolute.
        binary: PathBuf,
        /// Absolute. None: the one that the running gateway has.
        config: Option<PathBuf>,
    },
    /// The answer: it is started.
    Started {
        /// The new process.
        pid: u32,
    },
    /// The answer: the new process serves.
    Done {
        /// The new process.
        pid: u32,
    },
    /// A new process: everything is loaded, the sockets please.
    TakeOver {
        /// The new process.
        pid: u32,
        /// Its release.
        version: String,
        /// Whether the hand-over waits for SIGQUIT.
        on_signal: bool,
    },
    /// The answer: the sockets that come with this message.
    Sockets {
        /// In the order of the sockets.
        names: Vec<Name>,
        /// Whether another such message follows.
        more: bool,
    },
    /// A new process: requests are answered.
    Serving,
    /// The answer: the gateway is yours. From here on there is no way back.
    Yours,
    /// No, or no longer.
    Refused {
        /// For a person.
        why: String,
    },
    /// A new process that `lockgate upgrade` asked for could not start.
    GaveUp {
        /// The new process.
        pid: u32,
        /// For a person.
        why: String,
    },
}

/// One end of a conversation. Blocking: it runs on a thread of its own.
#[derive(Debug)]
pub(in crate::server) struct Wire {
    stream: UnixStream,
    received: Vec<u8>,
    sockets: VecDeque<OwnedFd>,
}

impl Wire {
    /// Speaks over a connected socket. Neither reading nor writing waits longer than `timeout`.
    ///
    /// # Errors
    /// The socket refuses its settings.
    pub(in crate::server) fn new(stream: UnixStream, timeout: Option<Duration>) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(timeout)?;
        stream.set_write_timeout(timeout)?;
        Ok(Self { stream, received: Vec::new(), sockets: VecDeque::new() })
    }

    /// Says something.
    ///
    /// # Errors
    /// The other side is gone, or does not read.
    pub(in crate::server) fn say(&mut self, message: &Message) -> io::Result<()> {
        self.say_with(message, &[])
    }

    /// Says something, with sockets beside it: at most [`BATCH`].
    ///
    /// # Errors
    /// The other side is gone, or does not read.
    pub(in crate::server) fn say_with(&mut self, message: &Message, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !sockets.is_empty() && !control.push(SendAncillaryMessage::ScmRights(sockets)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // The sockets travel with the first byte; the rest of a long line may follow on its own.
        let sent = rustix::net::sendmsg(&self.stream, &[IoSlice::new(&line)], &mut control, SendFlags::NOSIGNAL)?;
        self.stream.write_all(&line[sent..])
    }

    /// Waits for what the other side says.
    ///
    /// # Errors
    /// It is gone ([`io::ErrorKind::UnexpectedEof`]), says nothing in time ([`io::ErrorKind::WouldBlock`]), or nothing
    /// that we understand.
    pub(in crate::server) fn hear(&mut self) -> io::Result<Message> {
        loop {
            if let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return Ok(serde_json::from_slice(&line)?);
            }
            if self.received.len() > MESSAGE_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
            }
            self.receive()?;
        }
    }

    /// Waits at most so long from here on.
    ///
    /// # Errors
    /// The socket refuses its settings.
    pub(in crate::server) fn patience(&self, timeout: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(timeout))
    }

    /// Makes saying and hearing wait again, after [`Self::hung_up`].
    ///
    /// # Errors
    /// The socket refuses its settings.
    pub(in crate::server) fn block(&self) -> io::Result<()> {
        self.stream.set_nonblocking(false)
    }

    /// Waits until the other side is gone, or says something. Must be called within a runtime. Leaves the socket
    /// non-blocking.
    pub(in crate::server) async fn hung_up(&self) {
        // Watched through a handle of its own; one that cannot be watched counts as gone.
        let watched = self.stream.try_clone().and_then(|stream| {
            stream.set_nonblocking(true)?;
            tokio::net::UnixStream::from_std(stream)
        });
        if let Ok(watched) = watched {
            // An error means the same.
            let _ = watched.readable().await;
        }
    }

    /// Takes the next socket that has arrived.
    pub(in crate::server) fn socket(&mut self) -> Option<OwnedFd> {
        self.sockets.pop_front()
    }

    // Every read goes through here: a plain read would discard the sockets beside the bytes.
    fn receive(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            self.stream.as_fd(),
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(sockets) = message {
                self.sockets.extend(sockets);
            }
        }
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.received.extend_from_slice(&bytes[..received.bytes]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn sockets_arrive_in_order_however_many() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let sockets: Vec<TcpListener> = (0..150).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let sender = std::thread::spawn(move || {
            let mut wire = Wire::new(ours, None).unwrap();
            for batch in sockets.chunks(BATCH) {
                let names = batch.iter().map(|socket| Name::Http(socket.local_addr().unwrap())).collect();
                let handles: Vec<_> = batch.iter().map(std::os::fd::AsFd::as_fd).collect();
                wire.say_with(&Message::Sockets { names, more: true }, &handles).unwrap();
            }
            wire.say(&Message::Sockets { names: Vec::new(), more: false }).unwrap();
        });
        let mut wire = Wire::new(theirs, None).unwrap();
        let mut heard = 0;
        while let Message::Sockets { names, more: true } = wire.hear().unwrap() {
            for name in names {
                let socket = TcpListener::from(wire.socket().unwrap());
                assert_eq!(Name::Http(socket.local_addr().unwrap()), name);
                heard += 1;
            }
        }
        sender.join().unwrap();
        assert_eq!(heard, 150);
    }

    #[test]
    fn silence_and_absence_are_told_apart() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(ours, Some(Duration::from_millis(5))).unwrap();
        assert_eq!(wire.hear().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(theirs);
        assert_eq!(wire.hear().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
