"""A stand-in for a cluster's DNS: answers for Services and for pods with a host name, by what the API has of them."""

import socket
import threading

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from tests.cluster.api import Api

DOMAIN = "cluster.local"
_PACKET_BYTES = 4096
_SECONDS = 5


class NameServer:
    """Serves until the process ends.

    Args:
        address: Where it listens, at port 53 of UDP.
        api: The cluster's API.
    """

    def __init__(self, address: str, api: Api) -> None:
        self._api = api
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 53))
        threading.Thread(target=self._serve, name="name server", daemon=True).start()

    def _serve(self) -> None:
        while True:
            packet, sender = self._socket.recvfrom(_PACKET_BYTES)
            query = dns.message.from_wire(packet)
            answer = dns.message.make_response(query, recursion_available=True)
            answer.flags |= dns.flags.AA
            try:
                self._answer(query, answer)
            except (AssertionError, OSError):
                # The API does not answer: the resolver asks again.
                answer.set_rcode(dns.rcode.SERVFAIL)
            self._socket.sendto(answer.to_wire(), sender)

    def _answer(self, query: dns.message.Message, answer: dns.message.Message) -> None:
        [question] = query.question
        found = self._addresses(question.name.to_text(omit_final_dot=True).lower())
        if not found:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == dns.rdatatype.A:
            answer.answer.append(dns.rrset.from_text_list(question.name, _SECONDS, "IN", "A", found))

    def _addresses(self, name: str) -> list[str]:
        """Addresses of `SERVICE.NAMESPACE.svc.DOMAIN` or `HOST.SERVICE.NAMESPACE.svc.DOMAIN`."""
        words = name.removesuffix(f".svc.{DOMAIN}").split(".")
        if not name.endswith(f".svc.{DOMAIN}") or len(words) not in (2, 3):
            return []
        *host, service, namespace = words
        found = self._api.get(f"/api/v1/namespaces/{namespace}/services/{service}")
        if found is None:
            return []
        if not host and found["spec"]["clusterIP"] != "None":
            return [found["spec"]["clusterIP"]]
        path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        slices = self._api.get(path, labelSelector=f"kubernetes.io/service-name={service}") or {"items": []}
        endpoints = [endpoint for item in slices["items"] for endpoint in item["endpoints"] or []]
        return [
            address
            for endpoint in endpoints
            if endpoint["conditions"].get("ready", True) and (not host or endpoint.get("hostname") == host[0])
            for address in endpoint["addresses"]
        ]
