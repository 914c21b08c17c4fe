{
  description = "archsearch: neural architecture search over hybrid sequence-model blocks";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs = { self, nixpkgs }:
    let
      systems = [ "x86_64-linux" "aarch64-linux" "aarch64-darwin" ];
      each = f: nixpkgs.lib.genAttrs systems (system: f nixpkgs.legacyPackages.${system});
    in
    {
      devShells = each (pkgs: {
        default = pkgs.mkShell {
          packages = [
            pkgs.python311
            pkgs.poetry
            pkgs.gnumake
            pkgs.git
            pkgs.gcc
          ];
          # The wheels of torch and numpy look for the C++ runtime and zlib here.
          LD_LIBRARY_PATH = pkgs.lib.makeLibraryPath [ pkgs.stdenv.cc.cc.lib pkgs.zlib ];
          OMP_NUM_THREADS = "1";
          shellHook = ''
            echo "archsearch: make run, make test, make help"
          '';
        };
      });
    };
}
