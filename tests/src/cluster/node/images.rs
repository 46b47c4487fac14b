//! Images as OCI archives, built by `images/oci.py` without a daemon.
//!
//! Invariant: the same content gives the same digest, so a digest can be written into a chart's values.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{ensure, Context, Result};
use serde_json::Value;

/// What an image holds.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// `repository:tag`.
    pub name: String,
    /// A folder whose content it has.
    pub root: Option<PathBuf>,
    /// Programs, each with its place.
    pub files: Vec<(PathBuf, String)>,
    /// `uid:gid`.
    pub user: String,
    /// The program that runs.
    pub entrypoint: String,
}

/// An image as it lies on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// `repository:tag`.
    pub name: String,
    /// `sha256:...` of its manifest.
    pub digest: String,
    /// The OCI archive.
    pub archive: PathBuf,
}

impl Built {
    /// The name without its tag.
    pub fn repository(&self) -> &str {
        self.name
            .rsplit_once(':')
            .map_or(&self.name, |(repository, _)| repository)
    }

    /// `repository@sha256:...`.
    pub fn pinned(&self) -> String {
        format!("{}@{}", self.repository(), self.digest)
    }
}

/// `images/oci.py`.
fn tool() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/oci.py")
}

impl Image {
    /// Writes the archive into a folder.
    pub fn build(&self, folder: &Path) -> Result<Built> {
        let file = self.name.replace(['/', ':'], "-");
        let archive = folder.join(format!("{file}.tar"));
        let mut command = Command::new("python3");
        command.arg(tool()).arg(&archive).args(["--name", &self.name]);
        command.args(["--user", &self.user, "--entrypoint", &self.entrypoint]);
        if let Some(root) = &self.root {
            command.arg("--root").arg(root);
        }
        for (source, place) in &self.files {
            command.arg("--file").arg(format!("{}={place}:755", source.display()));
        }
        let output = command.output().context("starting python3")?;
        ensure!(
            output.status.success(),
            "images/oci.py: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let said: Value = serde_json::from_slice(&output.stdout)?;
        Ok(Built {
            name: self.name.clone(),
            digest: said["digest"].as_str().context("no digest")?.to_owned(),
            archive,
        })
    }
}

/// Our own images as `images/build.sh` left them in a folder, by what stands in its `images.json`.
pub fn ours(folder: &Path, name: &str) -> Result<Built> {
    let list = std::fs::read_to_string(folder.join("images.json"))
        .with_context(|| format!("no images in {}: run `make node-images`", folder.display()))?;
    let list: Value = serde_json::from_str(&list)?;
    let found = list.as_array().into_iter().flatten().find(|image| {
        let repository = image["name"].as_str().and_then(|name| name.split(':').next());
        repository.is_some_and(|repository| repository.ends_with(&format!("/{name}")))
    });
    let found = found.with_context(|| format!("no image {name} in {}", folder.display()))?;
    let word = |field: &str| found[field].as_str().map(str::to_owned).context("not a word");
    Ok(Built {
        name: word("name")?,
        digest: word("digest")?,
        archive: folder.join(word("archive")?),
    })
}
