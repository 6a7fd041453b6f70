"""The cluster's own authority, and the kubeconfigs that it vouches for."""

import base64
import datetime
import ipaddress
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.cluster.layout import API_PORT, API_SERVICE_IP, CONFIG, DOMAIN, KUBECONFIG, NODE, NODE_IP, PKI

API_NAMES = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{DOMAIN}"]
CLIENTS = {
    KUBECONFIG: ("cluster-admin", "system:masters"),
    CONFIG / "controller-manager.kubeconfig": ("system:kube-controller-manager", None),
    CONFIG / "scheduler.kubeconfig": ("system:kube-scheduler", None),
    CONFIG / "proxy.kubeconfig": ("system:kube-proxy", None),
    CONFIG / "kubelet.kubeconfig": (f"system:node:{NODE}", "system:nodes"),
    CONFIG / "coredns.kubeconfig": ("system:coredns", None),
}
"""Kubeconfig: the user that it stands for, and the user's group."""


def make() -> None:
    """Certificates, keys and kubeconfigs, unless there are some already."""
    if KUBECONFIG.exists():
        return
    PKI.mkdir(mode=0o700, exist_ok=True)
    CONFIG.mkdir(mode=0o700, exist_ok=True)
    authority = _Authority()
    _write(PKI / "ca", authority.certificate, authority.key)
    _write(PKI / "apiserver", *authority.server("kube-apiserver", API_NAMES, [NODE_IP, API_SERVICE_IP]))
    _write(PKI / "apiserver-to-kubelet", *authority.client("kube-apiserver", "system:masters"))
    (PKI / "service-accounts.key").write_bytes(_key_bytes(_new_key()))
    for path, (user, group) in reversed(CLIENTS.items()):  # the admin's last: it says that all are there
        certificate, key = authority.client(user, group)
        _write(PKI / path.stem, certificate, key)
        path.write_text(_kubeconfig(user, PKI / path.stem))
        path.chmod(0o600)


class _Authority:
    def __init__(self) -> None:
        self.key = _new_key()
        self._name = _name("cpmbee-cluster")
        builder = self._builder(self._name, self.key)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.certificate = builder.sign(self.key, hashes.SHA256())

    def server(
        self, name: str, names: list[str], addresses: list[str]
    ) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        alternatives = [
            *(x509.DNSName(alternative) for alternative in names),
            *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses),
        ]
        key = _new_key()
        builder = self._builder(_name(name), key)
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        return builder.sign(self.key, hashes.SHA256()), key

    def client(self, user: str, group: str | None) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        key = _new_key()
        builder = self._builder(_name(user, group), key)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        return builder.sign(self.key, hashes.SHA256()), key

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return x509.CertificateBuilder(
            issuer_name=self._name,
            subject_name=subject,
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - datetime.timedelta(hours=1),
            not_valid_after=now + datetime.timedelta(days=365),
        )


def _name(common: str, organization: str | None = None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common)]
    if organization:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def _write(stem: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    stem.with_name(f"{stem.name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    stem.with_name(f"{stem.name}.key").write_bytes(_key_bytes(key))


def _kubeconfig(user: str, stem: Path) -> str:
    def content(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    cluster = {"server": f"https://{NODE_IP}:{API_PORT}", "certificate-authority-data": content(PKI / "ca.crt")}
    credentials = {
        "client-certificate-data": content(stem.with_name(f"{stem.name}.crt")),
        "client-key-data": content(stem.with_name(f"{stem.name}.key")),
    }
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cpmbee", "cluster": cluster}],
            "users": [{"name": user, "user": credentials}],
            "contexts": [{"name": "cpmbee", "context": {"cluster": "cpmbee", "user": user}}],
            "current-context": "cpmbee",
        }
    )
