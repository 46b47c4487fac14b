//! One bare HTTP request, for pages that are plain.
//!
//! Refuses nothing: what comes back is told as it is.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What is answered to a request such as `GET /metrics`: status line and body.
pub async fn get(address: SocketAddr, request: &str) -> Result<(String, String)> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("{request} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no end of the head")?;
        anyhow::Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
    };
    tokio::time::timeout(Duration::from_secs(20), asked).await?
}
