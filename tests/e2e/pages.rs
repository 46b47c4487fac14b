//! Every YAML that people may copy, on the real API server: the blocks of `docs/` and of the README, and the files of
//! `examples/`.
//!
//! What a block is stands behind its fence's `yaml`: nothing for objects, which the server must take as they stand;
//! `refused` for objects it must not take, with the words of its refusal in a first comment `# refused: …`; `values` for
//! values of the chart `sidegate`, whose rendering the server must take; `install` for the file of `sidegate inject
//! --install`. Another word fails the test, so that nothing is passed over.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use serde_json::Value;
use sidegate_injector::install::Install;
use sidegate_policies::yaml;
use sidegate_tests::authority::Authority;
use sidegate_tests::cluster::{Cluster, User};

use crate::site::{chart, NAMESPACE};

/// A text to copy.
struct Block {
    /// File and line.
    place: String,
    /// What it is.
    is: Is,
    text: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Is {
    Objects,
    Refused,
    Values,
    Install,
}

/// What is written in pages and examples is what a cluster takes.
pub fn every_yaml_is_what_it_says(cluster: &Cluster) -> Result<()> {
    let blocks = blocks()?;
    let count = |is: Is| blocks.iter().filter(|block| block.is == is).count();
    ensure!(count(Is::Objects) > 15, "only {} blocks of objects", count(Is::Objects));
    for namespace in namespaces(&blocks)? {
        let known = cluster.ask(User::Admin, &["get", "namespace", &namespace], "")?;
        if !known.status.success() {
            // Another test may make it at the same moment.
            cluster.ask(User::Admin, &["create", "namespace", &namespace], "")?;
        }
    }
    let mut wrong = Vec::new();
    for block in &blocks {
        if let Err(error) = block.hold(cluster) {
            wrong.push(format!("{}: {error:#}", block.place));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

impl Block {
    fn hold(&self, cluster: &Cluster) -> Result<()> {
        match self.is {
            Is::Objects => applied(cluster, &self.text),
            Is::Refused => {
                let first = self.text.lines().next().unwrap_or_default();
                let words = first
                    .strip_prefix("# refused: ")
                    .context("it begins with no `# refused: …`")?;
                match applied(cluster, &self.text) {
                    Ok(()) => bail!("it is taken"),
                    Err(error) => {
                        let said = format!("{error:#}");
                        ensure!(said.contains(words), "refused, but not with `{words}`: {said}");
                        Ok(())
                    }
                }
            }
            Is::Values => {
                let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
                std::fs::write(file.path(), &self.text)?;
                let file = file.path().to_string_lossy().into_owned();
                let chart = chart("sidegate");
                // What `helm test` makes is made in an order, in a namespace of its own.
                let how = ["--namespace", NAMESPACE, "--no-hooks", "-f", &file];
                let rendered = cluster.helm(&[&["template", "docs", &chart][..], &how].concat())?;
                let complaint = String::from_utf8_lossy(&rendered.stderr);
                ensure!(rendered.status.success(), "helm template: {complaint}");
                applied(cluster, &String::from_utf8(rendered.stdout)?)
            }
            Is::Install => {
                let pem = Authority::new()?.pem().to_owned();
                let body: Vec<&str> = pem.lines().filter(|line| !line.starts_with("-----")).collect();
                let body = body.join("\n  ");
                // No page holds a certificate.
                let text = self.text.replacen("  ...", &format!("  {body}"), 1);
                match Install::read(&text) {
                    Ok(_) => Ok(()),
                    Err(problems) => bail!("{}", problems.join("; ")),
                }
            }
        }
    }
}

/// What the server would store, if it were not a dry run.
fn applied(cluster: &Cluster, text: &str) -> Result<()> {
    let arguments = [
        "apply",
        "--server-side",
        "--dry-run=server",
        "--validate=strict",
        "--force-conflicts",
        "--field-manager=docs",
        "-f",
        "-",
    ];
    cluster.kubectl(&arguments, text).map(|_| ())
}

/// Every namespace in which objects are.
fn namespaces(blocks: &[Block]) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::from([NAMESPACE.to_owned()]);
    for block in blocks
        .iter()
        .filter(|block| matches!(block.is, Is::Objects | Is::Refused))
    {
        let documents = yaml::values(&block.text).map_err(|mistakes| {
            let told: Vec<String> = mistakes.iter().map(|mistake| mistake.in_file(&block.place)).collect();
            anyhow::anyhow!("{}", told.join("\n"))
        })?;
        for document in documents {
            let named = document.pointer("/metadata/namespace").and_then(Value::as_str);
            all.extend(named.map(str::to_owned));
        }
    }
    Ok(all)
}

fn blocks() -> Result<Vec<Block>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    for file in files(&root.join("docs"), ".md")?
        .into_iter()
        .chain([root.join("README.md")])
    {
        found.extend(fenced(&named(&root, &file), &std::fs::read_to_string(&file)?)?);
    }
    for file in files(&root.join("examples"), ".yaml")? {
        let place = named(&root, &file);
        // Cases are no objects; `sidegate policy test` runs them, and its own tests do.
        if !place.ends_with(".cases.yaml") {
            let (is, text) = (Is::Objects, std::fs::read_to_string(&file)?);
            found.push(Block { place, is, text });
        }
    }
    Ok(found)
}

fn named(root: &Path, file: &Path) -> String {
    file.strip_prefix(root).unwrap_or(file).display().to_string()
}

fn files(folder: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path, ending)?);
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The YAML blocks of a page.
fn fenced(page: &str, text: &str) -> Result<Vec<Block>> {
    let mut found: Vec<Block> = Vec::new();
    // Within a fence: its block, if that is YAML.
    let mut within: Option<Option<Block>> = None;
    for (at, line) in text.lines().enumerate() {
        let Some(fence) = line.trim_start().strip_prefix("```") else {
            if let Some(Some(block)) = &mut within {
                block.text.push_str(line);
                block.text.push('\n');
            }
            continue;
        };
        if let Some(ended) = within.take() {
            found.extend(ended);
            continue;
        }
        let place = format!("{page}:{}", at + 1);
        let mut words = fence.split_whitespace();
        let is = match (words.next(), words.next(), words.next()) {
            (Some("yaml" | "yml"), None, _) => Some(Is::Objects),
            (Some("yaml"), Some("refused"), None) => Some(Is::Refused),
            (Some("yaml"), Some("values"), None) => Some(Is::Values),
            (Some("yaml"), Some("install"), None) => Some(Is::Install),
            (Some("yaml" | "yml"), ..) => bail!("{place}: `{fence}` is none of yaml, yaml refused, values, install"),
            _ => None,
        };
        let text = String::new();
        within = Some(is.map(|is| Block { place, is, text }));
    }
    ensure!(within.is_none(), "{page}: a block does not end");
    Ok(found)
}
