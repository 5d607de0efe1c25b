//! The labels of a counters block as text: `name=value,name=value`, any value, at most [`LABEL_BYTES`] bytes.
//!
//! In a value a backslash stands in front of what would part labels or end the text: `\\` is a backslash, `\,` a comma,
//! `\0` a zero byte. Labels that do not fit lose the ends of their longest values: such a value ends in `~` and the 16
//! hexadecimal digits of its FNV-1a hash, so that two long names which begin alike stay two.

use std::borrow::Cow;

use super::counters::LABEL_BYTES;

/// Bytes that a shortened value ends in: `~` and the hash.
const TAIL_BYTES: usize = 17;

/// The labels as text. Names are the caller's constants: letters, digits and underscores.
#[must_use]
pub fn text(labels: &[(&str, &str)]) -> String {
    let mut values: Vec<String> = labels.iter().map(|(_, value)| escape(value)).collect();
    let fixed: usize = labels.iter().map(|(name, _)| name.len() + 2).sum::<usize>().saturating_sub(1);
    let room = LABEL_BYTES.saturating_sub(fixed);
    if values.iter().map(String::len).sum::<usize>() > room {
        let limit = share(&values, room);
        for (value, (_, whole)) in values.iter_mut().zip(labels) {
            if value.len() > limit {
                *value = shorten(whole, limit);
            }
        }
    }
    let pairs = labels.iter().zip(&values).map(|((name, _), value)| format!("{name}={value}"));
    pairs.collect::<Vec<_>>().join(",")
}

/// A label's name and its value, as they stand in a text or taken out of it.
pub type Pair<'a> = (Cow<'a, str>, Cow<'a, str>);

/// The labels that `text` says, in order. A part without `=` is ignored: nonsense of whoever wrote it.
#[must_use]
pub fn parse(text: &str) -> Vec<Pair<'_>> {
    let parts = Parts { rest: Some(text) };
    parts.filter_map(|part| part.split_once('=')).map(|(name, value)| (plain(name), plain(value))).collect()
}

/// What lies between commas that no backslash stands in front of.
struct Parts<'a> {
    rest: Option<&'a str>,
}

impl<'a> Iterator for Parts<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = self.rest.take()?;
        let end = if rest.contains('\\') { end_of_escaped(rest) } else { rest.find(',') };
        let Some(end) = end else { return Some(rest) };
        self.rest = Some(&rest[end + 1..]);
        Some(&rest[..end])
    }
}

/// The first comma that no backslash stands in front of.
fn end_of_escaped(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    text.bytes().position(|byte| {
        let is_end = byte == b',' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        is_end
    })
}

/// The text that was escaped.
fn plain(escaped: &str) -> Cow<'_, str> {
    if !escaped.contains('\\') {
        return Cow::Borrowed(escaped);
    }
    let mut plain = String::with_capacity(escaped.len());
    let mut letters = escaped.chars();
    while let Some(letter) = letters.next() {
        let meant = match letter {
            '\\' => match letters.next() {
                Some('0') => '\0',
                Some(other) => other,
                None => '\\',
            },
            other => other,
        };
        plain.push(meant);
    }
    Cow::Owned(plain)
}

fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for letter in value.chars() {
        push_escaped(&mut escaped, letter);
    }
    escaped
}

fn push_escaped(escaped: &mut String, letter: char) {
    match letter {
        '\0' => escaped.push_str("\\0"),
        '\\' | ',' => escaped.extend(['\\', letter]),
        _ => escaped.push(letter),
    }
}

/// The largest length that all values may have so that together they fit into `room`.
fn share(values: &[String], room: usize) -> usize {
    let fits = |limit: usize| values.iter().map(|value| value.len().min(limit)).sum::<usize>() <= room;
    (0..=room).rev().find(|&limit| fits(limit)).unwrap_or(0)
}

fn shorten(value: &str, limit: usize) -> String {
    let mut short = String::with_capacity(limit);
    for letter in value.chars() {
        let before = short.len();
        push_escaped(&mut short, letter);
        if short.len() + TAIL_BYTES > limit {
            short.truncate(before);
            break;
        }
    }
    let tail = format!("~{:016x}", fnv1a(value.as_bytes()));
    short.push_str(&tail[..tail.len().min(limit)]);
    short
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(String, String)> {
        parse(text).into_iter().map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
    }

    fn owned(labels: &[(&str, &str)]) -> Vec<(String, String)> {
        labels.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn odd_values_come_back_as_they_were() {
        let labels = [("guest", "a,b=c"), ("device", "\\,\\\\\0\n\""), ("switch", "")];

        assert_eq!(owned(&labels), parsed(&text(&labels)));
    }

    #[test]
    fn plain_values_look_as_they_are() {
        assert_eq!("guest=web,device=web.eth0", text(&[("guest", "web"), ("device", "web.eth0")]));
    }

    #[test]
    fn long_values_are_cut_to_fit_and_stay_apart() {
        let [first, second] = ["1", "2"].map(|end| "ü,".repeat(100) + end);
        let texts = [&first, &second].map(|long| text(&[("guest", long), ("device", "eth0"), ("switch", long)]));

        assert!(texts.iter().all(|text| text.len() <= LABEL_BYTES), "{texts:?}");
        assert_ne!(texts[0], texts[1]);
        let parsed = parsed(&texts[0]);
        assert_eq!(vec!["guest", "device", "switch"], parsed.iter().map(|(name, _)| name).collect::<Vec<_>>());
        assert_eq!("eth0", parsed[1].1);
        assert!(parsed[0].1.starts_with("ü,ü,"), "{parsed:?}");
    }

    #[test]
    fn nonsense_is_ignored() {
        assert_eq!(owned(&[("a", "1"), ("b", "2=3\\")]), parsed("x,a=1,,b=2=3\\"));
    }
}
