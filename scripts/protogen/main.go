// SPDX-License-Identifier: Apache-2.0

// Protogen makes the Go code of .proto files, as protoc with protoc-gen-go
// would, but by Go modules alone, so that `make generate` needs no binary on
// the machine. It has a module of its own, for its dependencies are not the
// product's.
//
// Usage: go run . DIR FILE.proto...
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/cmd/protoc-gen-go/internal_gengo"
	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: protogen DIR FILE.proto...")
		os.Exit(2)
	}
	ctx := context.Background() //rule:allow the root of a program of its own
	if err := generate(ctx, os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "protogen:", err)
		os.Exit(1)
	}
}

// generate compiles files of dir and writes the Go code beside them.
func generate(ctx context.Context, dir string, names []string) error {
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{dir}}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	files, err := compiler.Compile(ctx, names...)
	if err != nil {
		return err
	}
	req := &pluginpb.CodeGeneratorRequest{
		FileToGenerate: names,
		Parameter:      proto.String("paths=source_relative"),
	}
	seen := make(map[string]bool)
	for _, f := range files {
		for i := range f.Imports().Len() {
			add(req, seen, protodesc.ToFileDescriptorProto(f.Imports().Get(i).FileDescriptor))
		}
		add(req, seen, protodesc.ToFileDescriptorProto(f))
	}
	plugin, err := protogen.Options{}.New(req)
	if err != nil {
		return err
	}
	for _, f := range plugin.Files {
		if f.Generate {
			internal_gengo.GenerateFile(plugin, f)
		}
	}
	return write(dir, plugin.Response())
}

func add(req *pluginpb.CodeGeneratorRequest, seen map[string]bool, f *descriptorpb.FileDescriptorProto) {
	if !seen[f.GetName()] {
		seen[f.GetName()] = true
		req.ProtoFile = append(req.ProtoFile, f)
	}
}

func write(dir string, resp *pluginpb.CodeGeneratorResponse) error {
	if resp.Error != nil {
		return fmt.Errorf("generate: %s", resp.GetError())
	}
	for _, f := range resp.File {
		path := filepath.Join(dir, f.GetName())
		if err := os.WriteFile(path, []byte(f.GetContent()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
