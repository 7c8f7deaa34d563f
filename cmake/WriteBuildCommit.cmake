# Writes OUT, the C++ file that names the commit of SOURCE_DIR; leaves it alone when it says that already.
find_package(Git QUIET)
set(commit "")
if(GIT_FOUND)
  execute_process(COMMAND ${GIT_EXECUTABLE} -C ${SOURCE_DIR} describe --always --dirty --abbrev=12 --exclude=*
                  OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(commit STREQUAL "")
  set(commit "unknown")
endif()
file(CONFIGURE OUTPUT ${OUT} CONTENT [[
namespace sluice {
extern const char* const kBuildCommit;
const char* const kBuildCommit = "@commit@";
}  // namespace sluice
]] @ONLY)
