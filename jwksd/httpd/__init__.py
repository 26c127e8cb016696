"""HTTP/1.1 on one selector loop: what a program that serves with it needs to import."""

from jwksd.httpd.connection import Answer, Handler
from jwksd.httpd.log import LineLog, where
from jwksd.httpd.loop import Server, Stats
from jwksd.httpd.parser import Limits, Request, Response, error, json_response
from jwksd.httpd.sockets import Listener
from jwksd.httpd.supervisor import Supervisor
from jwksd.httpd.workers import CORES, LANES, Overloaded, Workers, then

__all__ = [
    "CORES",
    "LANES",
    "Answer",
    "Handler",
    "Limits",
    "LineLog",
    "Listener",
    "Overloaded",
    "Request",
    "Response",
    "Server",
    "Stats",
    "Supervisor",
    "Workers",
    "error",
    "json_response",
    "then",
    "where",
]  # fmt: skip
