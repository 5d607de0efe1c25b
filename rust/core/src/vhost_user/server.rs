//! The socket of a vhost-user port: listens, or connects, for as long as the port is there, and serves one front end after
//! the other.
//!
//! ```text
//!   bind ─▶ wait for a front end ─▶ session: message by message ─▶ it went, or said what cannot be ─▶ rings back, wait again
//!              ▲ stop bell                                            │
//!              └──────────────── no limit of time or number ──────────┘
//!   connect: tried ten times a second instead, whoever is or is not there
//! ```
//!
//! Which side of the protocol the port is on does not depend on who connects: of a port that is a front end, back ends come and
//! go in the same way.
//!
//! The danger: a front end may stop in the middle of a message, or never read a reply. Only its own thread waits for it, and
//! [`Server::stop`] ends that by shutting the connection down. A second front end waits in the socket's queue until the
//! first is gone.
//! What lies at the socket's path is replaced only if it is a socket that nobody listens on. Source: vhost-user protocol,
//! "Communication"; unix(7).

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::Receiver;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use vhost::vhost_user::{BackendReqHandler, Error as Refused};

use super::early;
use super::front::{self, Ended, FrontParams};
use super::session::Session;
use crate::error::{Error, Result};
use crate::net::counters::counters;
use crate::net::frame::MacAddress;
use crate::port::{PortEvent, PortId, PortPart};
use crate::shm::counters::Block;
use crate::shm::doorbell::Doorbell;
use crate::worker::forward::EventSink;
use crate::worker::{ANSWER_DEADLINE, WorkerDoor};

/// How long to wait after a front end could not be let in, or connected to.
const AGAIN: Duration = Duration::from_millis(100);
/// How long a front end may say nothing before that is told.
const SILENCE: Duration = Duration::from_secs(2);
/// Longest path of a socket.
pub const PATH_BYTES_MAX: usize = 107;

counters! {
    /// What is counted for every socket of a front end.
    pub enum VhostUserCounter {
        /// Front ends that connected.
        Connections = "connections",
        /// One is connected now.
        IsConnected = "is_connected",
        /// Messages done.
        Messages = "messages",
        /// Connections ended: a message is none of the protocol, or not of what was agreed on.
        RefusedMessage = "refused_message",
        /// Connections ended: a message asked for what cannot be.
        RefusedContent = "refused_content",
        /// Connections ended: this machine had no memory or descriptor for what was asked.
        RefusedMachine = "refused_machine",
        /// Connections ended by a front end that went in the middle of a message.
        RefusedPartial = "refused_partial",
    }
}

/// Which side of the protocol a port is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The device of whoever comes.
    BackEnd,
    /// The driver of whatever device is there.
    FrontEnd,
}

/// What a server is made with.
pub(crate) struct ServerParams {
    pub role: Role,
    /// Largest packet.
    pub mtu: u32,
    pub port: PortId,
    pub name: Arc<str>,
    pub mac: MacAddress,
    pub door: WorkerDoor,
    pub sink: EventSink,
    pub block: Block,
}

/// A socket that is bound: made before the port, so that nothing has to be undone when it cannot be had.
#[derive(Debug)]
pub(crate) struct Bound {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of what was bound: only that is removed at the end.
    identity: (u64, u64),
}

impl Bound {
    /// Binds a socket to `path`, for its owner only.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the path cannot be one. [`Error::Exists`]: something is there, or somebody listens.
    /// [`Error::Machine`]: the system refused.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        check_path(path)?;
        make_room(path)?;
        let listener = UnixListener::bind(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                let folder = path.parent().unwrap_or(path).display();
                Error::NotFound(format!("there is no folder {folder} for a socket; make it, or choose another path"))
            }
            _ => Error::machine("bind a socket for front ends", error),
        })?;
        let prepared = listener
            .set_nonblocking(true)
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o600)))
            .and_then(|()| fs::symlink_metadata(path));
        match prepared {
            Ok(found) => Ok(Self { listener, path: path.into(), identity: (found.dev(), found.ino()) }),
            Err(error) => {
                let _ = fs::remove_file(path);
                Err(Error::machine("set up a socket for front ends", error))
            }
        }
    }
}

/// Where a port meets its front ends.
#[derive(Debug)]
pub(crate) enum Meeting {
    /// They come to a socket of ours.
    Listen(Bound),
    /// They listen, and we go there.
    Connect(PathBuf),
}

impl Meeting {
    /// A socket of front ends that listen, whether one is there already or not.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`]: the path cannot be one.
    pub(crate) fn at(path: &Path) -> Result<Self> {
        check_path(path)?;
        Ok(Self::Connect(path.into()))
    }

    /// The next front end. None: not now.
    fn next(&self, shared: &Shared) -> Option<UnixStream> {
        let stream = match self {
            Self::Listen(bound) => {
                let mut fds = [PollFd::new(&bound.listener, PollFlags::IN), PollFd::new(&shared.bell, PollFlags::IN)];
                match poll(&mut fds, None) {
                    Err(Errno::INTR) => return None,
                    Err(errno) => Err(errno.into()),
                    Ok(_) => bound.listener.accept().map(|(stream, _)| stream),
                }
            }
            Self::Connect(path) => connect(path).map_err(Into::into),
        };
        match stream {
            Ok(stream) => Some(stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock && matches!(self, Self::Listen(_)) => None,
            Err(_) => {
                // No descriptor is left, the front end went, or nobody is there: not at once again.
                let _ = shared.bell.wait(Some(AGAIN));
                None
            }
        }
    }
}

/// Connects without waiting for somebody to accept it.
fn connect(path: &Path) -> rustix::io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

fn check_path(path: &Path) -> Result<()> {
    let length = path.as_os_str().len();
    if path.is_absolute() && length <= PATH_BYTES_MAX {
        return Ok(());
    }
    let shown = path.display();
    Err(Error::Usage(format!(
        "the path of a socket begins with / and has at most {PATH_BYTES_MAX} bytes; {shown} has {length}"
    )))
}

impl Drop for Bound {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if is_ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket that nobody listens on any more.
fn make_room(path: &Path) -> Result<()> {
    let shown = path.display();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::machine("look at the path of a socket", error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Error::Exists(format!("{shown} is there and is no socket; remove it or choose another path")));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| Error::machine("remove an old socket", error))
        }
        Err(error) => Err(Error::machine("look whether somebody listens on a socket", error)),
        Ok(_) => Err(Error::Exists(format!("somebody listens on {shown}; choose another path"))),
    }
}

#[derive(Debug)]
struct Shared {
    is_over: AtomicBool,
    bell: Doorbell,
    /// The connection being served.
    current: Mutex<Option<UnixStream>>,
}

/// The thread that serves one socket.
pub(crate) struct Server {
    shared: Arc<Shared>,
    /// The socket once more, to look who waits at it; none where we are the one who connects.
    listener: Option<UnixListener>,
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves a socket from now on.
    ///
    /// # Errors
    ///
    /// [`Error::Machine`]: no thread or descriptor is free.
    pub(crate) fn start(meeting: Meeting, params: ServerParams) -> Result<Self> {
        let shared =
            Arc::new(Shared { is_over: AtomicBool::new(false), bell: Doorbell::create()?, current: Mutex::default() });
        let (ending, ended) = crossbeam_channel::bounded(1);
        let serving = shared.clone();
        let listener = match &meeting {
            Meeting::Listen(bound) => {
                let again = bound.listener.try_clone();
                Some(again.map_err(|error| Error::machine("duplicate a socket", error))?)
            }
            Meeting::Connect(_) => None,
        };
        let thread = thread::Builder::new()
            .name(format!("vbnet-vhost-{}", params.port))
            .spawn(move || {
                serve(&meeting, &serving, &params);
                drop(meeting);
                let _ = ending.send(());
            })
            .map_err(|error| Error::machine("start a thread for front ends", error))?;
        Ok(Self { shared, listener, ended, thread: Some(thread) })
    }

    /// Another front end waits for the one that is connected to go.
    pub(crate) fn has_waiting(&self) -> bool {
        let is_busy = self.shared.current.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let waits =
            |listener| poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready != 0);
        is_busy && self.listener.as_ref().is_some_and(waits)
    }
}

impl Drop for Server {
    /// Ends the connection and the thread, and removes the socket. A thread that a hostile file system holds is left behind:
    /// it has nothing that anybody else uses, and ends when it is let go.
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let _ = self.shared.bell.ring();
        if let Some(stream) = &*self.shared.current.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        if self.ended.recv_timeout(2 * ANSWER_DEADLINE).is_err()
            && self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
        {
            return;
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

fn serve(meeting: &Meeting, shared: &Shared, params: &ServerParams) {
    while !shared.is_over.load(Ordering::Relaxed) {
        let Some(stream) = meeting.next(shared) else { continue };
        params.block.add(VhostUserCounter::Connections as usize, 1);
        params.block.set(VhostUserCounter::IsConnected as usize, 1);
        if let Err(error) = converse(stream, shared, params) {
            let _ = params.sink.events.send(error);
            let _ = params.sink.bell.ring();
        }
        params.block.set(VhostUserCounter::IsConnected as usize, 0);
        if matches!(meeting, Meeting::Connect(_)) {
            // Whoever hangs up at once is not asked at once again.
            let _ = shared.bell.wait(Some(AGAIN));
        }
    }
}

fn told(params: &ServerParams, reason: &'static str, text: String) -> PortEvent {
    PortEvent { port: params.port, name: params.name.clone(), part: PortPart::Control, reason, text }
}

/// Serves whoever is at the other end until it goes: or why it had to.
fn converse(stream: UnixStream, shared: &Shared, params: &ServerParams) -> std::result::Result<(), PortEvent> {
    let machine = |error: std::io::Error| told(params, "refused_machine", format!("cannot use a connection: {error}"));
    stream.set_nonblocking(false).map_err(machine)?;
    let handle = stream.try_clone().map_err(machine)?;
    let ahead = stream.try_clone().map_err(machine)?;
    *shared.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
    let outcome = match params.role {
        Role::BackEnd => serve_front_end(stream, ahead, shared, params),
        Role::FrontEnd if shared.is_over.load(Ordering::Relaxed) => Ok(()),
        Role::FrontEnd => {
            let ServerParams { port, mtu, door, block, .. } = params;
            front::serve(&stream, &FrontParams { port: *port, mtu: *mtu, door, block })
        }
    };
    *shared.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
    match outcome {
        Err((counter, text)) if !shared.is_over.load(Ordering::Relaxed) => {
            params.block.add(counter as usize, 1);
            let who = if params.role == Role::BackEnd { "front" } else { "back" };
            let text = format!("a {who} end of port {} was disconnected: {text}", params.name);
            Err(told(params, VhostUserCounter::NAMES[counter as usize], text))
        }
        _ => Ok(()),
    }
}

/// Says so, once, when whoever is connected has said nothing for [`SILENCE`]: two back ends wait for each other for ever.
fn mind_silence(stream: &UnixStream, params: &ServerParams) {
    let limit = Timespec { tv_sec: SILENCE.as_secs() as i64, tv_nsec: 0 };
    if poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&limit)) == Ok(0) {
        let text = format!(
            "whoever is connected to port {} has said nothing for {} s: if it is a back end too, the port has to be its front end",
            params.name,
            SILENCE.as_secs()
        );
        let _ = params.sink.events.send(told(params, "silent", text));
        let _ = params.sink.bell.ring();
    }
}

/// Does what a front end asks, message by message.
fn serve_front_end(
    stream: UnixStream,
    mut ahead: UnixStream,
    shared: &Shared,
    params: &ServerParams,
) -> std::result::Result<(), Ended> {
    mind_silence(&stream, params);
    let session = Arc::new(Session::new(params.port, params.mac, params.door.clone()));
    let mut messages = BackendReqHandler::from_stream(stream, session.clone());
    let outcome = loop {
        // After the connection was shown to whoever stops us, so that it is either shut down or never begun.
        if shared.is_over.load(Ordering::Relaxed) {
            break Ok(());
        }
        match early::serve(&mut ahead, &session).unwrap_or_else(|| messages.handle_request()) {
            Ok(()) => params.block.add(VhostUserCounter::Messages as usize, 1),
            Err(refused) => break Err(refused),
        }
    };
    let refusal = session.take_refusal();
    session.end();
    let Err(refused) = outcome else { return Ok(()) };
    let counter = match (&refused, &refusal) {
        (Refused::Disconnected | Refused::SocketBroken(_), _) => return Ok(()),
        (Refused::PartialMessage, _) => VhostUserCounter::RefusedPartial,
        (Refused::BackendInternalError | Refused::SocketError(_), _) => VhostUserCounter::RefusedMachine,
        (_, Some(_)) => VhostUserCounter::RefusedContent,
        _ => VhostUserCounter::RefusedMessage,
    };
    Err((counter, refusal.map_or_else(|| refused.to_string(), |error| error.to_string())))
}
