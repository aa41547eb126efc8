# SPDX-License-Identifier: Apache-2.0
# orin_kernel(TARGET NAME)   adds kernels/NAME/launch.cpp and the device code of every .cu in kernels/NAME, for every
#                            architecture of ORIN_ARCHS; a module is called like its file.
# orin_embed_cubins(TARGET)  embeds all of it in the library; call it last.

set(ORIN_CMAKE_DIR ${CMAKE_CURRENT_LIST_DIR})

function(orin_kernel target name)
  target_sources(${target} PRIVATE kernels/${name}/launch.cpp)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/kernels/${name}/*.cu)
  foreach(source IN LISTS sources)
    get_filename_component(unit ${source} NAME_WE)
    foreach(arch IN LISTS ORIN_ARCHS)
      set(cubin ${CMAKE_CURRENT_BINARY_DIR}/${unit}.sm_${arch}.cubin)
      add_custom_command(
        OUTPUT ${cubin}
        COMMAND ${Python3_EXECUTABLE} ${ORIN_CMAKE_DIR}/compile_cubin.py ${source} ${cubin} --arch ${arch}
                --compiler ${ORIN_CUDA_COMPILER} --include ${CMAKE_CURRENT_SOURCE_DIR} --depfile ${cubin}.d
                --cache ${ORIN_CUBINS}
        DEPENDS ${source} ${ORIN_CMAKE_DIR}/compile_cubin.py
        DEPFILE ${cubin}.d
        COMMENT "${unit} sm_${arch}"
        VERBATIM)
      set_property(TARGET ${target} APPEND PROPERTY ORIN_CUBINS ${cubin})
    endforeach()
  endforeach()
endfunction()

function(orin_embed_cubins target)
  get_target_property(cubins ${target} ORIN_CUBINS)
  set(assembler ${CMAKE_CURRENT_BINARY_DIR}/cubins.S)
  set(table ${CMAKE_CURRENT_BINARY_DIR}/cubins.cpp)
  add_custom_command(
    OUTPUT ${assembler} ${table}
    COMMAND ${Python3_EXECUTABLE} ${ORIN_CMAKE_DIR}/embed_cubins.py ${assembler} ${table} ${cubins}
    DEPENDS ${cubins} ${ORIN_CMAKE_DIR}/embed_cubins.py
    VERBATIM)
  set_source_files_properties(${assembler} PROPERTIES OBJECT_DEPENDS "${cubins}")
  target_sources(${target} PRIVATE ${assembler} ${table})
endfunction()
