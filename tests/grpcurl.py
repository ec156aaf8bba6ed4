"""Does what `grpcurl` does for the calls of the documentation, by server reflection, where there is no Go to build it.

grpcurl.py -plaintext [-d JSON] HOST:PORT list|SERVICE/METHOD
"""

import argparse
import sys

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("-plaintext", action="store_true", required=True)
    parser.add_argument("-d", dest="data", default="{}")
    parser.add_argument("address")
    parser.add_argument("symbol")
    arguments = parser.parse_args()
    with grpc.insecure_channel(arguments.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        if arguments.symbol == "list":
            print("\n".join(sorted(database.get_services())))
            return 0
        return call(channel, DescriptorPool(database), arguments.symbol, arguments.data)


def call(channel: grpc.Channel, pool: DescriptorPool, symbol: str, data: str) -> int:
    service, _, name = symbol.rpartition("/")
    method = pool.FindServiceByName(service).methods_by_name[name]
    request = json_format.Parse(data, GetMessageClass(method.input_type)(), descriptor_pool=pool)
    answer = GetMessageClass(method.output_type)
    invoke = channel.unary_stream if method.server_streaming else channel.unary_unary
    stub = invoke(
        f"/{symbol}", request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString
    )
    try:
        answers = stub(request) if method.server_streaming else [stub(request)]
        for message in answers:
            print(json_format.MessageToJson(message, preserving_proto_field_name=True, descriptor_pool=pool))
    except grpc.RpcError as error:
        print(f"ERROR:\n  Code: {error.code().name}\n  Message: {error.details()}", file=sys.stderr)
        return 64 + error.code().value[0]
    return 0


if __name__ == "__main__":
    sys.exit(main())
