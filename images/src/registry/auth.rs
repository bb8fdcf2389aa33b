//! Challenges and tokens (RFC 7235, RFC 6750, and Docker's token specification).
//!
//! A registry that wants to know who asks answers 401 with a challenge. Basic is answered with the password; bearer with a
//! token that a token server gives out for a scope. What a challenge was answered with is kept for the next requests.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::credentials::Credentials;

/// A token without a lifetime is good for this long, says the specification.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);

/// A token is not used in the last seconds of its life.
const MARGIN: Duration = Duration::from_secs(10);

/// How this program calls itself to token servers.
const CLIENT_ID: &str = "rvm";

/// What a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// The challenge to answer among those of an answer's headers: bearer where there is a choice.
pub(super) fn challenge<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let challenges: Vec<Challenge> = headers.flat_map(parse).collect();
    let is_bearer = |challenge: &&Challenge| matches!(challenge, Challenge::Bearer { .. });
    challenges.iter().find(is_bearer).or(challenges.first()).cloned()
}

/// The known challenges of one header. A header may hold several, each a scheme and its parameters.
fn parse(header: &str) -> Vec<Challenge> {
    let mut found: Vec<(String, HashMap<String, String>)> = Vec::new();
    let mut rest = header.trim_start();
    while !rest.is_empty() {
        let end = rest.find([' ', '=', ',']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if let Some(value) = after.strip_prefix('=') {
            let (value, after) = value_of(value);
            if let Some((_, parameters)) = found.last_mut() {
                parameters.insert(word.to_ascii_lowercase(), value);
            }
            rest = after;
        } else {
            if !word.is_empty() {
                found.push((word.to_ascii_lowercase(), HashMap::new()));
            }
            rest = after;
        }
        rest = rest.trim_start_matches([' ', ',', '\t']);
    }
    let known = |(scheme, mut parameters): (String, HashMap<String, String>)| match scheme.as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer {
            realm: parameters.remove("realm")?,
            service: parameters.remove("service"),
            scope: parameters.remove("scope"),
        }),
        _ => None,
    };
    found.into_iter().filter_map(known).collect()
}

/// A parameter's value, quoted or not, and what follows.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((position, character)) = characters.next() {
        match character {
            '"' => return (value, quoted.get(position + 1..).unwrap_or_default()),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

/// The header's value for a password.
pub(super) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// What a token server answers.
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// The header's value of a token server's answer and how long it is good for.
pub(super) fn token(answer: &[u8]) -> Option<(String, Duration)> {
    let answer: TokenAnswer = serde_json::from_slice(answer).ok()?;
    let token = answer
        .token
        .filter(|token| !token.is_empty())
        .or(answer.access_token)?;
    // It becomes a header: what could end that, or begin another, is no token.
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let lifetime = answer.expires_in.map_or(DEFAULT_LIFETIME, Duration::from_secs);
    Some((format!("Bearer {token}"), lifetime.max(DEFAULT_LIFETIME)))
}

/// The form by which a token server is asked: names and values.
pub(super) fn question<'a>(
    service: Option<&'a str>,
    scope: Option<&'a str>,
    credentials: Option<&'a Credentials>,
) -> Vec<(&'static str, &'a str)> {
    let mut fields = Vec::new();
    fields.extend(service.map(|service| ("service", service)));
    match credentials {
        Some(Credentials::Token(token)) => {
            fields.extend(scope.map(|scope| ("scope", scope)));
            fields.extend([
                ("client_id", CLIENT_ID),
                ("grant_type", "refresh_token"),
                ("refresh_token", token.as_str()),
            ]);
        }
        // In a query each scope stands alone.
        other => {
            fields.extend(
                scope
                    .into_iter()
                    .flat_map(|scope| scope.split(' '))
                    .map(|scope| ("scope", scope)),
            );
            if let Some(Credentials::Password { user, .. }) = other {
                fields.push(("account", user));
            }
        }
    }
    fields
}

/// A form, or a query: `application/x-www-form-urlencoded`.
pub(super) fn encode(fields: &[(&str, &str)]) -> String {
    let escape = |text: &str| {
        let mut escaped = String::new();
        for byte in text.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'/' | b':') {
                escaped.push(char::from(byte));
            } else {
                escaped.push_str(&format!("%{byte:02X}"));
            }
        }
        escaped
    };
    let fields: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("{}={}", escape(name), escape(value)))
        .collect();
    fields.join("&")
}

/// What registries have accepted, by registry and scope.
#[derive(Default)]
pub(super) struct Accepted(Mutex<HashMap<(String, String), Header>>);

/// A header's value, and when it is no longer good.
struct Header {
    value: String,
    expiry: Option<Instant>,
}

impl Accepted {
    pub(super) fn get(&self, registry: &str, scope: &str) -> Option<String> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Header { value, expiry } = table.get(&(registry.to_owned(), scope.to_owned()))?;
        expiry
            .is_none_or(|expiry| Instant::now() < expiry)
            .then(|| value.clone())
    }

    /// `lifetime` is none for what does not grow old.
    pub(super) fn put(&self, registry: &str, scope: &str, value: &str, lifetime: Option<Duration>) {
        let expiry =
            lifetime.and_then(|lifetime| Instant::now().checked_add(lifetime.saturating_sub(MARGIN)));
        let value = value.to_owned();
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.insert((registry.to_owned(), scope.to_owned()), Header { value, expiry });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        }
    }

    #[test]
    fn challenges_are_read() {
        let check = |headers: &[&str], expected: Option<Challenge>| {
            assert_eq!(challenge(headers.iter().copied()), expected, "{headers:?}");
        };
        check(&["Basic realm=\"Registry\""], Some(Challenge::Basic));
        check(
            &["Bearer realm=\"https://a/t\",service=\"r.io\",scope=\"repository:a/b:pull,push\""],
            Some(bearer(
                "https://a/t",
                Some("r.io"),
                Some("repository:a/b:pull,push"),
            )),
        );
        check(
            &["bearer Realm=https://a/t , service=r"],
            Some(bearer("https://a/t", Some("r"), None)),
        );
        check(
            &["Basic realm=\"x\", Bearer realm=\"y\""],
            Some(bearer("y", None, None)),
        );
        check(
            &["Basic realm=\"x\"", "Bearer realm=\"y\""],
            Some(bearer("y", None, None)),
        );
        check(&["Bearer realm=\"a\\\"b\""], Some(bearer("a\"b", None, None)));
        check(
            &["Bearer realm=\"never ends"],
            Some(bearer("never ends", None, None)),
        );
        check(&["Digest realm=\"x\", nonce=\"y\""], None);
        check(&["Bearer service=\"x\""], None);
        check(&["", "=", ",,,", "= =", "Negotiate"], None);
    }

    #[test]
    fn tokens_are_read() {
        let check = |answer: &str, expected: Option<(&str, u64)>| {
            let expected = expected.map(|(value, seconds)| (value.to_owned(), Duration::from_secs(seconds)));
            assert_eq!(token(answer.as_bytes()), expected, "{answer}");
        };
        check(r#"{"token":"abc","expires_in":300}"#, Some(("Bearer abc", 300)));
        check(r#"{"access_token":"abc"}"#, Some(("Bearer abc", 60)));
        check(
            r#"{"token":"","access_token":"abc","expires_in":1}"#,
            Some(("Bearer abc", 60)),
        );
        check(r#"{"token":"a\r\nX: y"}"#, None);
        check(r#"{"token":""}"#, None);
        check(r#"{}"#, None);
        check("<html>", None);
        check(
            r#"{"token":"abc","expires_in":18446744073709551615}"#,
            Some(("Bearer abc", u64::MAX)),
        );
    }

    #[test]
    fn tokens_grow_old() {
        let accepted = Accepted::default();
        accepted.put("r", "s", "Bearer x", Some(Duration::from_secs(60)));
        assert_eq!(accepted.get("r", "s").as_deref(), Some("Bearer x"));
        assert_eq!(accepted.get("r", "other"), None);
        accepted.put("r", "s", "Bearer x", Some(MARGIN));
        assert_eq!(accepted.get("r", "s"), None);
        accepted.put("r", "s", "Basic x", None);
        accepted.put("r", "t", "Bearer x", Some(Duration::from_secs(u64::MAX)));
        assert!(accepted.get("r", "s").is_some() && accepted.get("r", "t").is_some());
    }

    #[test]
    fn forms_are_escaped() {
        let fields = [
            ("service", "Docker registry"),
            ("scope", "repository:a/b:pull,push"),
            ("x", "ä&=+"),
        ];
        assert_eq!(
            encode(&fields),
            "service=Docker%20registry&scope=repository:a/b:pull%2Cpush&x=%C3%A4%26%3D%2B"
        );
    }
}
