//! Which other place a request may be sent to.
//!
//! A registry decides where its blobs are, so a redirect is an address from outside: it may not leave HTTP, may not give up
//! TLS, and no credentials go with it to another origin.

use ureq::http::uri::{PathAndQuery, Scheme};
use ureq::http::{StatusCode, Uri};

use super::config::Registries;
use super::error::{Error, shown};

/// Whether an answer leads a request elsewhere that only `reads`, or that does not. 304 and 300 lead nowhere, and 301 to
/// 303 would make another request of one that sends something.
pub(super) fn leads(status: StatusCode, reads: bool) -> bool {
    matches!(status.as_u16(), 307 | 308) || (reads && matches!(status.as_u16(), 301..=303))
}

/// Where `location` leads from `base`.
pub(super) fn target(base: &Uri, location: &str, registries: &Registries) -> Result<Uri, Error> {
    let refused = |reason| Error::Redirect {
        from: shown(base),
        reason,
    };
    if scheme_of(location)
        .is_some_and(|scheme| !matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https"))
    {
        return Err(refused("it leads away from HTTP"));
    }
    let target = resolve(base, location).ok_or_else(|| refused("its address is malformed"))?;
    match target.scheme_str() {
        Some("https") => {}
        Some("http") if base.scheme() == Some(&Scheme::HTTPS) => {
            return Err(refused("it leads from TLS to plain HTTP"));
        }
        Some("http") if registries.allows_plain_http(authority(&target)) => {}
        Some("http") => return Err(refused("it leads to a host that may not be asked by plain HTTP")),
        _ => return Err(refused("it leads away from HTTP")),
    }
    if target
        .authority()
        .is_none_or(|authority| authority.as_str().contains('@'))
    {
        return Err(refused("its address has credentials or no host"));
    }
    Ok(target)
}

/// Whether both are served by the same party, so that the same credentials may be shown to it.
pub(super) fn same_origin(one: &Uri, other: &Uri) -> bool {
    let port = |uri: &Uri| {
        uri.port_u16()
            .or_else(|| (uri.scheme()? == &Scheme::HTTPS).then_some(443).or(Some(80)))
    };
    one.scheme() == other.scheme()
        && one.host().map(str::to_ascii_lowercase) == other.host().map(str::to_ascii_lowercase)
        && port(one) == port(other)
}

/// `HOST[:PORT]` of an address.
pub(super) fn authority(uri: &Uri) -> &str {
    uri.authority().map_or("", |authority| authority.as_str())
}

/// The scheme of an address that has one.
fn scheme_of(location: &str) -> Option<&str> {
    let before_path = location.split(['/', '?', '#']).next()?;
    before_path.split_once(':').map(|(scheme, _)| scheme)
}

/// RFC 3986, section 5.2, for the forms that servers use: whole addresses, and paths with or without a host.
fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let scheme = base.scheme_str()?;
    if let Some(rest) = location.strip_prefix("//") {
        return format!("{scheme}://{rest}").parse().ok();
    }
    if scheme_of(location).is_some() {
        return location.split('#').next()?.parse().ok();
    }
    let path = location.split('#').next()?;
    let path = if path.starts_with('/') {
        path.to_owned()
    } else if path.starts_with('?') {
        format!("{}{path}", base.path())
    } else {
        let (directory, _) = base.path().rsplit_once('/')?;
        format!("{directory}/{path}")
    };
    let mut parts = base.clone().into_parts();
    parts.path_and_query = Some(path.parse::<PathAndQuery>().ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_resolved() {
        let base: Uri = "https://r.example:5000/v2/a/blobs/x?y=1".parse().unwrap();
        let check = |location: &str, expected: Option<&str>| {
            let found = target(&base, location, &Registries::default()).ok();
            assert_eq!(
                found.map(|uri| uri.to_string()).as_deref(),
                expected,
                "{location}"
            );
        };
        check("https://s.example/b?sig=1#f", Some("https://s.example/b?sig=1"));
        check("//s.example/b", Some("https://s.example/b"));
        check("/b?c=d", Some("https://r.example:5000/b?c=d"));
        check("z", Some("https://r.example:5000/v2/a/blobs/z"));
        check("?z=1", Some("https://r.example:5000/v2/a/blobs/x?z=1"));
        check("http://s.example/b", None);
        check("http://localhost/b", None);
        check("file:///etc/passwd", None);
        check("ftp://s.example/b", None);
        check("https://user:secret@s.example/b", None);
        check("https://", None);
    }

    #[test]
    fn plain_http_stays_where_it_may_be() {
        let base: Uri = "http://localhost:5000/v2/a/blobs/x".parse().unwrap();
        let registries = Registries::default();
        assert!(target(&base, "http://127.0.0.1:9/x", &registries).is_ok());
        assert!(target(&base, "http://s.example/x", &registries).is_err());
        assert!(
            target(
                &base,
                "http://s.example/x",
                &registries.with_insecure("s.example")
            )
            .is_ok()
        );
    }

    #[test]
    fn origins() {
        let check = |one: &str, other: &str, expected| {
            assert_eq!(
                same_origin(&one.parse().unwrap(), &other.parse().unwrap()),
                expected,
                "{one} {other}"
            );
        };
        check("https://a/x", "https://A:443/y", true);
        check("https://a/x", "https://a:444/y", false);
        check("https://a/x", "http://a/y", false);
        check("http://a/x", "http://b/y", false);
    }
}
