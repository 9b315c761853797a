// SPDX-License-Identifier: Apache-2.0
//! What `start` may answer.

use super::*;

#[test]
fn all_three_answers_of_start_are_read() {
    let result = BootstrapResult {
        version: 3,
        address: "unix:///s/x".into(),
        protocol: "ttrpc".into(),
        ..Default::default()
    };
    for (printed, version) in [
        (result.encode_to_vec(), 3),
        (
            br#"{"version":3,"address":"unix:///s/x","protocol":"ttrpc"}"#.to_vec(),
            3,
        ),
        (br#"{"version":2,"address":"unix:///s/x"}"#.to_vec(), 2),
        (b"unix:///s/x".to_vec(), 2),
        (b"unix:///s/x\n".to_vec(), 2),
    ] {
        let address = Address::parse(&printed).unwrap();
        assert_eq!(address.version, version);
        assert_eq!(address.path(), Some(Path::new("/s/x")));
    }
    for bad in [
        &b""[..],
        b"two words",
        br#"{"version":4,"address":"unix:///s/x","protocol":"ttrpc"}"#,
        br#"{"version":3,"address":"unix:///s/x","protocol":"grpc"}"#,
        b"vsock://3:1024",
    ] {
        assert!(
            Address::parse(bad).is_err(),
            "{:?}",
            String::from_utf8_lossy(bad)
        );
    }
}
