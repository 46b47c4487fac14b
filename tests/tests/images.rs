//! Our images: the same content is the same digest, whoever builds it and when; and their lists of parts are whole.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use sidegate_tests::cluster::node::images::{Built, Image};

/// A file system of a few files, made in a folder of its own.
fn root(folder: &Path, names: &[&str]) {
    for name in names {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, name).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    symlink("a", folder.join("bin/link")).unwrap();
}

fn image(root: &Path, into: &Path) -> Built {
    let image = Image {
        name: "example.invalid/sidegate:1".to_owned(),
        root: Some(root.to_owned()),
        user: "61937:61937".to_owned(),
        entrypoint: "/bin/a".to_owned(),
        ..Image::default()
    };
    image.build(into).unwrap()
}

#[test]
fn the_same_content_has_the_same_digest() {
    let [one, two, other] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    root(one.path(), &["bin/a", "lib/b"]);
    // In another order, and at another time.
    root(two.path(), &["lib/b", "bin/a"]);
    Command::new("touch")
        .args(["-d", "2001-01-01"])
        .arg(two.path().join("bin/a"))
        .status()
        .unwrap();
    root(other.path(), &["bin/a", "lib/c"]);
    let out = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let first = image(one.path(), out[0].path());
    let second = image(two.path(), out[1].path());
    assert_eq!(first.digest, second.digest);
    assert_eq!(fs::read(&first.archive).unwrap(), fs::read(&second.archive).unwrap());
    assert_ne!(first.digest, image(other.path(), out[2].path()).digest);
    assert_eq!(first.pinned(), format!("example.invalid/sidegate@{}", first.digest));
}

#[test]
fn an_image_runs_as_its_number_and_says_so() {
    let (content, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    root(content.path(), &["bin/a"]);
    let built = image(content.path(), out.path());
    let unpacked = tempfile::tempdir().unwrap();
    let tar = |archive: &Path, into: &Path| {
        let status = Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(into).status();
        assert!(status.unwrap().success());
    };
    tar(&built.archive, unpacked.path());
    let blob = |digest: &str| fs::read(unpacked.path().join("blobs").join(digest.replace(':', "/"))).unwrap();
    let manifest: Value = serde_json::from_slice(&blob(&built.digest)).unwrap();
    let config: Value = serde_json::from_slice(&blob(manifest["config"]["digest"].as_str().unwrap())).unwrap();
    assert_eq!(config["config"]["User"], "61937:61937");
    assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/bin/a"]));
    let layer = unpacked.path().join("layer.tar");
    fs::write(&layer, blob(manifest["layers"][0]["digest"].as_str().unwrap())).unwrap();
    let listed = Command::new("tar").arg("-tvf").arg(&layer).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.lines().all(|line| line.contains(" 0/0 ")),
        "not root's: {listed}"
    );
    assert!(
        listed.contains("bin/link -> a") && listed.contains("etc/passwd"),
        "{listed}"
    );
}

#[test]
fn the_list_of_parts_is_what_is_linked() {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/sbom.py");
    let list = || {
        let output = Command::new("python3")
            .arg(&tool)
            .arg("sidegate-sidecar")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let first = list();
    assert_eq!(first, list(), "not the same for the same Cargo.lock");
    let bom: Value = serde_json::from_slice(&first).unwrap();
    assert_eq!(bom["bomFormat"], "CycloneDX");
    assert_eq!(bom["metadata"]["component"]["name"], "sidegate-sidecar");
    let parts = bom["components"].as_array().unwrap();
    let names: BTreeSet<&str> = parts.iter().filter_map(|part| part["name"].as_str()).collect();
    assert!(["rustls", "tokio", "sidegate-policies", "pg_query"]
        .iter()
        .all(|name| names.contains(name)));
    // What tests alone use, and what builds, is not in the program.
    assert!(
        !["proptest", "tempfile", "cc", "bindgen"]
            .iter()
            .any(|name| names.contains(name)),
        "{names:?}"
    );
    let hashed = parts
        .iter()
        .filter(|part| !part["name"].as_str().unwrap().starts_with("sidegate"));
    assert!(hashed.into_iter().all(|part| part["hashes"][0]["alg"] == "SHA-256"));
}
