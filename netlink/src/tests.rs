//! Names anywhere; requests in a namespace of the test's own.

use super::*;

#[test]
fn names_are_those_that_the_kernel_takes() {
    for name in ["eth0", "rvmv0123abcd", "a", "x.y-z", "123456789012345"] {
        assert_eq!(checked(name).unwrap(), name);
    }
    for name in [
        "",
        ".",
        "..",
        "a b",
        "a/b",
        "a:b",
        "1234567890123456",
        "n\u{e4}me",
        "a\0",
    ] {
        assert!(matches!(checked(name), Err(Error::Name(_))), "{name:?}");
    }
}

#[test]
fn what_is_there_can_be_listed_by_anybody() {
    let mut socket = Socket::open().unwrap();
    let links = socket.links().unwrap();
    let loopback = links.iter().find(|link| link.name == "lo").unwrap();
    assert_eq!(&socket.find("lo").unwrap(), loopback);
    assert_eq!(loopback.mac, Some([0; 6]));
    socket.addresses().unwrap();
    socket.routes().unwrap();
    assert!(matches!(socket.find("no-such-if"), Err(Error::Missing(name)) if name == "no-such-if"));
}
