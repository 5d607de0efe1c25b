//! What a stack guest's web page says, and how much HTTP it understands: requests in, bytes of a response out.
//!
//! HTTP/1.0 and 1.1, `GET` and `HEAD`, keep-alive and pipelining; nothing else of it. No sockets here: a request head is
//! parsed from bytes, a response is made of bytes and a length that is streamed behind them. A head that is longer than
//! [`HEAD_MAX`] or makes no sense ends the connection with the status that says so. Source: RFC 9110, RFC 9112.

use std::fmt::Write;

/// Longest request head in bytes.
pub const HEAD_MAX: usize = 4096;
/// Most bytes one `/bytes/N` answers.
pub const STREAM_MAX: u64 = 1 << 40;

/// A request, as far as we care.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `HEAD` instead of `GET`.
    pub is_head: bool,
    /// The path, without what follows a `?`.
    pub path: String,
    /// The connection stays open behind the response.
    pub keeps_alive: bool,
    /// Bytes of the request head, the empty line included.
    pub bytes: usize,
}

/// What bytes of a connection hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Not yet a whole head.
    Incomplete,
    /// A request.
    Request(Request),
    /// Nothing we can answer but with this status; the connection ends behind it.
    Refused(Status),
}

/// Statuses we send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 200.
    Ok,
    /// 400.
    BadRequest,
    /// 404.
    NotFound,
    /// 405.
    MethodNotAllowed,
    /// 413: bodies are not read.
    ContentTooLarge,
    /// 431.
    HeaderTooLarge,
    /// 505.
    VersionNotSupported,
}

impl Status {
    const fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::ContentTooLarge => "413 Content Too Large",
            Self::HeaderTooLarge => "431 Request Header Fields Too Large",
            Self::VersionNotSupported => "505 HTTP Version Not Supported",
        }
    }
}

/// Finds the first request in `bytes`.
#[must_use]
pub fn parse(bytes: &[u8]) -> Parsed {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return if bytes.len() >= HEAD_MAX { Parsed::Refused(Status::HeaderTooLarge) } else { Parsed::Incomplete };
    };
    if end + 4 > HEAD_MAX {
        return Parsed::Refused(Status::HeaderTooLarge);
    }
    let Ok(head) = std::str::from_utf8(&bytes[..end]) else { return Parsed::Refused(Status::BadRequest) };
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Parsed::Refused(Status::BadRequest);
    };
    let mut keeps_alive = match version {
        "HTTP/1.1" => true,
        "HTTP/1.0" => false,
        _ if version.starts_with("HTTP/") => return Parsed::Refused(Status::VersionNotSupported),
        _ => return Parsed::Refused(Status::BadRequest),
    };
    let is_head = match method {
        "GET" => false,
        "HEAD" => true,
        _ => return Parsed::Refused(Status::MethodNotAllowed),
    };
    if !target.starts_with('/') {
        return Parsed::Refused(Status::BadRequest);
    }
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { return Parsed::Refused(Status::BadRequest) };
        let value = value.trim();
        if name.eq_ignore_ascii_case("connection") {
            for option in value.split(',').map(str::trim) {
                if option.eq_ignore_ascii_case("close") {
                    keeps_alive = false;
                } else if option.eq_ignore_ascii_case("keep-alive") {
                    keeps_alive = true;
                }
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding")
            || (name.eq_ignore_ascii_case("content-length") && value != "0")
        {
            return Parsed::Refused(Status::ContentTooLarge);
        }
    }
    let path = target.split('?').next().unwrap_or_default().to_owned();
    Parsed::Request(Request { is_head, path, keeps_alive, bytes: end + 4 })
}

/// A response: bytes to send, then as many pattern bytes as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Head and body.
    pub bytes: Vec<u8>,
    /// Bytes of the pattern `0, 1, … 255, 0, …` behind them.
    pub stream: u64,
    /// The connection stays open.
    pub keeps_alive: bool,
}

impl Response {
    fn new(status: Status, kind: &str, body: &[u8], stream: u64, request: Option<&Request>) -> Self {
        let keeps_alive = request.is_some_and(|request| request.keeps_alive);
        let mut head = String::new();
        // Writing to a string cannot fail.
        let _ = write!(
            head,
            "HTTP/1.1 {}\r\nServer: vbnet\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: {}\r\n\r\n",
            status.line(),
            body.len() as u64 + stream,
            if keeps_alive { "keep-alive" } else { "close" },
        );
        let mut bytes = head.into_bytes();
        let is_head = request.is_some_and(|request| request.is_head);
        if !is_head {
            bytes.extend_from_slice(body);
        }
        Self { bytes, stream: if is_head { 0 } else { stream }, keeps_alive }
    }

    /// The answer to what could not be parsed; ends the connection.
    #[must_use]
    pub fn refusal(status: Status) -> Self {
        Self::new(status, "text/plain; charset=utf-8", format!("{}\n", status.line()).as_bytes(), 0, None)
    }
}

/// What the page tells about its guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The guest's name, as the user gave it.
    pub name: String,
    /// `02:00:00:00:00:01`.
    pub mac: String,
    /// `10.0.0.1/24`, one address a line; may be empty.
    pub addresses: Vec<String>,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Seconds since the guest was added.
    pub uptime_s: u64,
    /// Counters, in the order they are shown.
    pub counters: Vec<(&'static str, u64)>,
}

/// Answers one request.
#[must_use]
pub fn respond(request: &Request, facts: &Facts) -> Response {
    let html = "text/html; charset=utf-8";
    match request.path.as_str() {
        "/" | "/index.html" => Response::new(Status::Ok, html, page(facts).as_bytes(), 0, Some(request)),
        "/stats" | "/metrics.json" => {
            Response::new(Status::Ok, "application/json", json(facts).as_bytes(), 0, Some(request))
        }
        path => match path.strip_prefix("/bytes/").map(str::parse::<u64>) {
            Some(Ok(count)) if count <= STREAM_MAX => {
                Response::new(Status::Ok, "application/octet-stream", &[], count, Some(request))
            }
            _ => Response::new(Status::NotFound, "text/plain; charset=utf-8", b"404 Not Found\n", 0, Some(request)),
        },
    }
}

/// Text that cannot break out of HTML.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(letter),
        }
    }
    out
}

/// A JSON string, quotes included.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            control if control < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(control));
            }
            _ => out.push(letter),
        }
    }
    out.push('"');
    out
}

fn page(facts: &Facts) -> String {
    let name = escaped(&facts.name);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{name}</title></head>\n<body>\n\
         <h1>{name}</h1>\n<p>A guest on vbnet, up for {} s.</p>\n<table>\n<tr><th>MAC</th><td>{}</td></tr>\n",
        facts.uptime_s,
        escaped(&facts.mac),
    );
    for address in &facts.addresses {
        let _ = writeln!(out, "<tr><th>IP</th><td>{}</td></tr>", escaped(address));
    }
    let _ = writeln!(out, "<tr><th>MTU</th><td>{}</td></tr>", facts.mtu);
    for (counter, value) in &facts.counters {
        let _ = writeln!(out, "<tr><th>{counter}</th><td>{value}</td></tr>");
    }
    out.push_str("</table>\n<p>As JSON: <a href=\"/stats\">/stats</a></p>\n</body></html>\n");
    out
}

fn json(facts: &Facts) -> String {
    let addresses: Vec<String> = facts.addresses.iter().map(|address| quoted(address)).collect();
    let mut out = format!(
        "{{\"name\": {}, \"mac\": {}, \"addresses\": [{}], \"mtu\": {}, \"uptime_s\": {}",
        quoted(&facts.name),
        quoted(&facts.mac),
        addresses.join(", "),
        facts.mtu,
        facts.uptime_s,
    );
    for (counter, value) in &facts.counters {
        let _ = write!(out, ", \"{counter}\": {value}");
    }
    out.push_str("}\n");
    out
}
